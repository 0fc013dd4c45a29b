// Reductions within a warp of 32 lanes; every lane gets the result.
#pragma once

constexpr unsigned kAllLanes = 0xFFFFFFFFu;
constexpr int kLanes = 32;

// In a tree, lane + 16 first: on every lane the same bits, because a + b = b + a.
__device__ __forceinline__ float warp_sum(float value) {
  for (int offset = kLanes / 2; offset > 0; offset /= 2) {
    value += __shfl_xor_sync(kAllLanes, value, offset);
  }
  return value;
}

__device__ __forceinline__ float warp_maximum(float value) {
  for (int offset = kLanes / 2; offset > 0; offset /= 2) {
    value = fmaxf(value, __shfl_xor_sync(kAllLanes, value, offset));
  }
  return value;
}

__device__ __forceinline__ int first_lane_where(bool condition) {
  return __ffs(static_cast<int>(__ballot_sync(kAllLanes, condition))) - 1;  // -1: none
}
