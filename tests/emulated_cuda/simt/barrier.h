// The barrier of the block. Threads that have exited are not waited for.
#pragma once

#include "scheduler.h"

namespace simt {

struct BlockBarrier {
  Operation operation;
  unsigned waiting;
  unsigned votes;   // of the threads that wait
  unsigned result;  // votes when the barrier last opened
};

inline BlockBarrier barrier;
inline unsigned alive_count;

inline void open_barrier_if_complete() {
  if (barrier.waiting == 0 || barrier.waiting != alive_count) return;
  barrier.result = barrier.votes;
  barrier.waiting = barrier.votes = 0;
  in_order(0, thread_count, [](Thread& thread) {
    if (!thread.exited) ready.push(&thread);
  });
}

// Returns how many threads came with a true predicate.
inline unsigned wait_for_block(Operation operation, bool predicate) {
  if (barrier.waiting == 0) barrier.operation = operation;
  if (barrier.operation != operation)
    report("thread (%u, %u, %u) is at %s while others are at %s", current->index.x,
           current->index.y, current->index.z, name_of(operation), name_of(barrier.operation));
  current->waits_at = operation;
  ++barrier.waiting;
  barrier.votes += predicate;
  open_barrier_if_complete();
  wait_for_turn();
  return barrier.result;
}

}  // namespace simt
