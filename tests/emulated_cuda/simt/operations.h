// What a thread can wait for, and where threads of a warp read each other's values.
#pragma once

namespace simt {

enum class Operation : unsigned char {
  none,
  syncthreads,
  syncthreads_count,
  syncthreads_and,
  syncthreads_or,
  syncwarp,
  shuffle,
  shuffle_up,
  shuffle_down,
  shuffle_xor,
  ballot,
  all,
  any,
};

inline const char* name_of(Operation operation) {
  static const char* const names[] = {
      "nothing",          "__syncthreads",   "__syncthreads_count", "__syncthreads_and",
      "__syncthreads_or", "__syncwarp",      "__shfl_sync",         "__shfl_up_sync",
      "__shfl_down_sync", "__shfl_xor_sync", "__ballot_sync",       "__all_sync",
      "__any_sync"};
  return names[static_cast<unsigned>(operation)];
}

inline bool is_of_warp(Operation operation) { return operation >= Operation::syncwarp; }

inline bool is_shuffle(Operation operation) {
  return operation >= Operation::shuffle && operation <= Operation::shuffle_xor;
}

// Whose value `lane` gets, as PTX defines `shfl`: the operand counts modulo 32, and a lane that
// would read beyond its group of `width` lanes keeps its own value. The exception is xor, which
// reaches groups before its own.
inline unsigned source_lane(Operation operation, unsigned lane, unsigned operand, unsigned width) {
  const unsigned first = lane & ~(width - 1);
  const unsigned last = first + width - 1;
  operand &= 31;
  switch (operation) {
    case Operation::shuffle:
      return first | (operand & (width - 1));
    case Operation::shuffle_up:
      return lane >= first + operand ? lane - operand : lane;
    case Operation::shuffle_down:
      return lane + operand <= last ? lane + operand : lane;
    case Operation::shuffle_xor:
      return (lane ^ operand) <= last ? lane ^ operand : lane;
    default:
      return lane;
  }
}

}  // namespace simt
