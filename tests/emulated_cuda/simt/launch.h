// Running a kernel: one block after the other, each from poisoned memory to its last thread.
#pragma once

#include <mutex>

#include "barrier.h"
#include "shared_memory.h"
#include "warp.h"

namespace simt {

inline SharedMemory shared_memory;
inline std::mutex one_launch_at_a_time;

// Whoever waits for this thread no longer does.
inline void exit_thread(Thread& thread) {
  thread.exited = true;
  --alive_count;
  open_barrier_if_complete();
  Warp& warp = warps[thread.warp()];
  warp.alive &= ~(1u << thread.lane());
  for (unsigned index = warp.gathering_count; index-- > 0;)
    release_if_complete(thread.warp(), warp.gatherings[index]);
}

inline bool same_wait(const Thread& one, const Thread& other) {
  const bool masks_differ = is_of_warp(one.waits_at) && one.waits_with != other.waits_with;
  return !one.exited && !other.exited && one.waits_at == other.waits_at && !masks_differ;
}

// One line for all threads that wait like `first`, unless an earlier one had it printed.
inline void print_wait(const Thread& first) {
  unsigned count = 0;
  for (unsigned number = 0; number < thread_count; ++number) {
    if (!same_wait(first, threads[number])) continue;
    if (number < first.number) return;
    ++count;
  }
  if (count == 0) return;
  fprintf(stderr, "  %u wait at %s", count, name_of(first.waits_at));
  if (is_of_warp(first.waits_at)) fprintf(stderr, " with mask 0x%08x", first.waits_with);
  fprintf(stderr, ", the first is (%u, %u, %u)\n", first.index.x, first.index.y, first.index.z);
}

inline void report_deadlock() {
  report("deadlock: of %u threads %u have exited and no other can go on", thread_count,
         thread_count - alive_count);
  for (unsigned number = 0; number < thread_count; ++number) print_wait(threads[number]);
}

inline void prepare_threads() {
  barrier = {};
  alive_count = thread_count;
  for (unsigned number = 0; number < thread_count; number += warp_size) {
    Warp& warp = warps[number / warp_size];
    warp.alive = ~0u >> (warp_size - lanes_from(number));
    warp.gathering_count = 0;
  }
  ready.clear();
  in_order(0, thread_count, [](Thread& thread) {
    thread.fiber = nullptr;
    thread.exited = false;
    ready.push(&thread);
  });
}

inline bool run_block() {
  shared_memory.prepare_block();
  prepare_threads();
  give_turn(launcher, ready.pop(order));
  if (!failed && alive_count > 0) report_deadlock();
  if (!failed && shared_memory.written_past_end())
    report("writes past the end of its dynamic shared memory");
  return !failed;
}

inline bool launchable(size_t threads_wanted, size_t blocks_wanted, size_t dynamic_bytes) {
  if (threads_wanted == 0 || threads_wanted > most_threads)
    report("%zu threads in a block; 1 … %u are possible", threads_wanted, most_threads);
  if (blocks_wanted == 0 || blocks_wanted > UINT32_MAX)
    report("%zu blocks in a grid; 1 … %u are possible", blocks_wanted, UINT32_MAX);
  if (dynamic_bytes > most_dynamic_shared_bytes)
    report("%zu bytes of dynamic shared memory; at most %zu are possible", dynamic_bytes,
           most_dynamic_shared_bytes);
  const char* order_name = getenv("EMULATED_CUDA_ORDER");
  if (!order.parse(order_name))
    report("EMULATED_CUDA_ORDER=%s; use forward, reverse, shuffled or shuffled:<seed>", order_name);
  return !failed;
}

inline void number_threads() {
  thread_count = block_shape.x * block_shape.y * block_shape.z;
  for (unsigned number = 0; number < thread_count; ++number) {
    const unsigned row = number / block_shape.x;
    threads[number].number = number;
    threads[number].index = {number % block_shape.x, row % block_shape.y, row / block_shape.y};
  }
}

inline bool run_blocks() {
  const unsigned count = grid_shape.x * grid_shape.y * grid_shape.z;
  for (unsigned number : order.blocks(count)) {
    const unsigned row = number / grid_shape.x;
    block_index = {number % grid_shape.x, row % grid_shape.y, row / grid_shape.y};
    if (!run_block()) return false;
  }
  return true;
}

inline size_t volume(dim3 shape) { return size_t(shape.x) * shape.y * shape.z; }

// Returns 0, or 1 after printing why not all blocks could run.
inline int launch(const Kernel& kernel, dim3 grid, dim3 block, unsigned dynamic_shared_bytes,
                  const unsigned char* arguments) {
  const std::lock_guard<std::mutex> lock(one_launch_at_a_time);
  failed = false;
  running_kernel = kernel;
  kernel_arguments = arguments;
  grid_shape = grid;
  block_shape = block;
  block_index = {0, 0, 0};
  if (!launchable(volume(block), volume(grid), dynamic_shared_bytes)) return 1;
  number_threads();
  shared_memory.prepare_launch(dynamic_shared_bytes);
  if (run_blocks()) return 0;
  fibers.abandon_all();
  return 1;
}

}  // namespace simt
