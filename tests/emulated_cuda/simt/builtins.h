// The names a kernel finds without including anything: qualifiers, indices, barriers, and the
// operations of a warp.
//
// Not here, so that using it fails to compile: cooperative groups, __match_*_sync,
// __reduce_*_sync, textures, device-side launches, inline PTX.
#pragma once

#include "launch.h"

#define __global__
#define __device__
#define __host__
#define __constant__
#define __shared__ thread_local
#define __grid_constant__
#define __align__(bytes) __attribute__((aligned(bytes)))
#define __launch_bounds__(...)
#define __forceinline__ inline __attribute__((always_inline))
#define __noinline__ __attribute__((noinline))

#define threadIdx (static_cast<const uint3&>(simt::current->index))
inline const uint3& blockIdx = simt::block_index;
inline const dim3& blockDim = simt::block_shape;
inline const dim3& gridDim = simt::grid_shape;
constexpr int warpSize = simt::warp_size;

inline void __syncthreads() { simt::wait_for_block(simt::Operation::syncthreads, false); }

inline int __syncthreads_count(int predicate) {
  return int(simt::wait_for_block(simt::Operation::syncthreads_count, predicate != 0));
}

// True unless some thread came with a false predicate, which is what is counted.
inline int __syncthreads_and(int predicate) {
  return simt::wait_for_block(simt::Operation::syncthreads_and, predicate == 0) == 0;
}

inline int __syncthreads_or(int predicate) {
  return simt::wait_for_block(simt::Operation::syncthreads_or, predicate != 0) != 0;
}

inline void __syncwarp(unsigned mask = 0xffffffffu) {
  simt::wait_for_lanes(simt::Operation::syncwarp, mask);
}

template <class Value>
Value __shfl_sync(unsigned mask, Value value, int lane, int width = warpSize) {
  return simt::exchange(simt::Operation::shuffle, mask, value, unsigned(lane), width);
}

template <class Value>
Value __shfl_up_sync(unsigned mask, Value value, unsigned delta, int width = warpSize) {
  return simt::exchange(simt::Operation::shuffle_up, mask, value, delta, width);
}

template <class Value>
Value __shfl_down_sync(unsigned mask, Value value, unsigned delta, int width = warpSize) {
  return simt::exchange(simt::Operation::shuffle_down, mask, value, delta, width);
}

template <class Value>
Value __shfl_xor_sync(unsigned mask, Value value, int lanes, int width = warpSize) {
  return simt::exchange(simt::Operation::shuffle_xor, mask, value, unsigned(lanes), width);
}

inline unsigned __ballot_sync(unsigned mask, int predicate) {
  return unsigned(simt::wait_for_lanes(simt::Operation::ballot, mask, predicate != 0));
}

inline int __any_sync(unsigned mask, int predicate) {
  return simt::wait_for_lanes(simt::Operation::any, mask, predicate != 0) != 0;
}

inline int __all_sync(unsigned mask, int predicate) {
  return simt::wait_for_lanes(simt::Operation::all, mask, predicate == 0) == 0;
}

// CUDA does not promise that lanes on the same path are active together. The least it allows is
// the caller alone, which is what a fiber is.
inline unsigned __activemask() { return 1u << simt::current->lane(); }

// Nothing runs at the same time as a thread, so that its writes are seen in the order it made them.
inline void __threadfence() {}
inline void __threadfence_block() {}
inline void __threadfence_system() {}

template <class Value>
Value __ldg(const Value* address) {
  return *address;
}
