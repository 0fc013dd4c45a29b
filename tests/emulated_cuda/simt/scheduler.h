// Threads of the live block and whose turn it is. A thread runs until it has to wait for others.
#pragma once

#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>

#include "fibers.h"
#include "operations.h"
#include "order.h"
#include "vector_types.h"

namespace simt {

constexpr unsigned most_threads = 1024;
constexpr unsigned warp_size = 32;

struct Thread {
  uint3 index;  // threadIdx
  unsigned number;
  Fiber* fiber;  // null until the thread's first turn
  bool exited;
  Operation waits_at;
  unsigned waits_with;  // the mask, at an operation of the warp

  unsigned warp() const { return number / warp_size; }
  unsigned lane() const { return number % warp_size; }
};

// Threads that could go on, first come first served unless the order is shuffled. A thread is in
// it at most once.
class ReadyQueue {
 public:
  void clear() { count_ = 0; }

  void push(Thread* thread) { at(count_++) = thread; }

  Thread* pop(Order& order) {
    if (count_ == 0) return nullptr;
    if (order.direction == Direction::shuffled) std::swap(at(0), at(order.random(count_)));
    Thread* thread = at(0);
    ++head_;
    --count_;
    if (count_ > 0 && at(0)->fiber != nullptr) fetch_ahead(at(0)->fiber->context);
    return thread;
  }

 private:
  Thread*& at(unsigned place) { return places_[(head_ + place) % most_threads]; }

  Thread* places_[most_threads];
  unsigned head_ = 0;
  unsigned count_ = 0;
};

struct Kernel {
  const char* name;
  void (*call)(const unsigned char* arguments);
};

inline Kernel running_kernel;
inline const unsigned char* kernel_arguments;
inline dim3 grid_shape;
inline dim3 block_shape;
inline uint3 block_index;

inline Order order;
inline Thread threads[most_threads];
inline unsigned thread_count;
inline Thread* current;  // whose turn it is
inline ReadyQueue ready;
inline Context launcher;  // of the code that runs one block after the other
inline bool failed;

void run_threads();
inline FiberPool fibers(run_threads);

// Prints what is wrong with the running block, if it is the first such thing. The launch fails as
// soon as the current thread waits or exits; until then it goes on with whatever it got.
__attribute__((format(printf, 1, 2))) inline void report(const char* format, ...) {
  if (failed) return;
  failed = true;
  fprintf(stderr, "emulated CUDA: kernel %s, block (%u, %u, %u): ", running_kernel.name,
          block_index.x, block_index.y, block_index.z);
  va_list values;
  va_start(values, format);
  vfprintf(stderr, format, values);
  va_end(values);
  fputc('\n', stderr);
}

// Leaves the block for good.
inline void abandon_block(Context& from) {
  switch_context(from, launcher);
  abort();
}

inline void give_turn(Context& from, Thread* next) {
  current = next;
  if (next->fiber == nullptr) next->fiber = fibers.take();
  switch_context(from, next->fiber->context);
}

// Runs others until it is the current thread's turn again. If nobody can go on, the launcher
// finds threads that have not exited and reports the deadlock.
inline void wait_for_turn() {
  Thread* self = current;
  Thread* next = ready.pop(order);
  if (next == nullptr || failed) abandon_block(self->fiber->context);
  if (next != self) give_turn(self->fiber->context, next);
  self->waits_at = Operation::none;
}

// Calls `visit` with threads `first` … `first + count - 1`, in the order that they shall run.
template <class Visitor>
void in_order(unsigned first, unsigned count, Visitor visit) {
  const bool reverse = order.direction == Direction::reverse;
  for (unsigned place = 0; place < count; ++place)
    visit(threads[first + (reverse ? count - 1 - place : place)]);
}

inline void exit_thread(Thread& thread);

// What every fiber does: threads from their first turn to their end. A thread that never waited
// leaves its stack to the next one without any switch.
inline void run_threads() {
  for (;;) {
    Fiber* fiber = current->fiber;
    running_kernel.call(kernel_arguments);
    exit_thread(*current);
    Thread* next = ready.pop(order);
    if (next != nullptr && next->fiber == nullptr && !failed) {
      next->fiber = fiber;
      current = next;
      continue;
    }
    fibers.give_back(fiber);
    if (next == nullptr || failed)
      switch_context(fiber->context, launcher);
    else
      give_turn(fiber->context, next);
  }
}

}  // namespace simt
