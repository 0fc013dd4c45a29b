// Guidance, top-k, nucleus and sampling (VAR's sample_with_top_k_top_p_, one kernel).
//
// For every position whose token is not given, with logits c (conditional) and u (unconditional)
// and the parameters (columns 0 to 3) guidance t, top-k, top-p and sampling temperature T:
//
//     l     = c + t (c - u)
//     top-k   drops what is below the k-th largest l; ties with it stay
//     top-p   sorts what is left, smallest first and equal ones in the order of codes, and drops it
//             while the probability dropped, at temperature 1, stays within 1 - p; never the last
//     token ~ softmax(l / T) over what is kept, by inverse CDF of one uniform
//
// conditional [batch, count, codes], unconditional the same or [1, count, codes] (shared), float32
// or float16; parameters [batch, 4] float32; seeds [batch] uint64; given [batch, count] int32, ids
// that are not negative are the tokens -> tokens [batch, count] int32. error [1] becomes 1 if a
// logit is NaN or +infinity, a row is all -infinity, a parameter is NaN or negative, or a given id
// is neither a code nor mask_token; the token is then 0. codes <= 65,536.
//
// Probabilities are whole numbers, exp(l - max) times 2^40, truncated: sums do not depend on the
// order, and the tokens are those of sample_top_k_top_p.py. Nothing is sorted: both limits are
// found by histograms of 256 bins, first over the distance from the maximum in eighths, which spreads
// the logits over many bins, then over the bytes of the logit and of the code in the one bin that is
// left. One search finds the bin in which the sum passes a target, and the code that is drawn.
//
// Launch: one block of 256 threads per position, grid = (count, batch).
// Room for 4 blocks is asked for so that the compiler takes up to 64 registers: left alone it spills
// to make room for 6.
// Shared memory: up to 8,192 guided logits (32 KiB) and a histogram; longer rows are read again in
// every pass, which L2 holds.
// Memory: per position, 4 (float16: 2) bytes per code, twice with guidance.

#include <cuda_fp16.h>

#include "exponential.cuh"
#include "philox.cuh"
#include "warp.cuh"

namespace top_k_top_p {

using Mass = unsigned long long;

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kLanes;
constexpr int kBins = kThreads;  // of a byte
constexpr int kStored = 8192;
constexpr float kColdest = 1e-30f;  // below it: the most likely code

struct Place {
  int index;
  Mass rest;  // of the target, less all before the index
};

struct Scratch {
  Mass histogram[kBins];
  Mass sums[kWarps];
  Place found;
  float maxima[kWarps];
  float logits[kStored];
};

__device__ __forceinline__ float lowest() { return __int_as_float(0xFF800000); }  // -infinity

__device__ __forceinline__ float widened(float logit) { return logit; }
__device__ __forceinline__ float widened(__half logit) { return __half2float(logit); }

// Guided logits of one position.
template <typename Logit>
struct Row {
  const Logit* conditional;
  const Logit* unconditional;
  float guidance;
  int codes;
  float* stored;  // the first kStored of them, where there are no more

  __device__ __forceinline__ float guided(int code) const {
    const float c = widened(conditional[code]);
    if (guidance == 0.0f || c == lowest()) return c;  // an excluded code stays excluded
    return c + guidance * (c - widened(unconditional[code]));
  }
  __device__ __forceinline__ float operator[](int code) const {
    return codes <= kStored ? stored[code] : guided(code);
  }
};

// An integer in the order of floats; 0 and -0 have the same.
__device__ __forceinline__ unsigned key(float value) {
  const unsigned bits = value == 0.0f ? 0u : static_cast<unsigned>(__float_as_int(value));
  return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

// Seven bytes in the order in which codes are dropped: 255 less the distance from the maximum in
// eighths, the logit, the code.
__device__ __forceinline__ Mass rank(int code, float value, float highest) {
  const int eighths = static_cast<int>(fminf((highest - value) * 8.0f, 255.0f));
  return static_cast<Mass>(255 - eighths) << 48 | static_cast<Mass>(key(value)) << 16 | code;
}

__device__ __forceinline__ Mass mass(float exponent) {
  return static_cast<Mass>(exponential(exponent) * 1099511627776.0f);
}

__device__ __forceinline__ Mass sum_of_warp(Mass value) {
  for (int offset = kLanes / 2; offset > 0; offset /= 2) {
    value += __shfl_xor_sync(kAllLanes, value, offset);
  }
  return value;
}

// The sum over this lane and those before it.
__device__ __forceinline__ Mass sum_up_to_lane(Mass value) {
  for (int offset = 1; offset < kLanes; offset *= 2) {
    const Mass before = __shfl_up_sync(kAllLanes, value, offset);
    if (threadIdx.x % kLanes >= offset) value += before;
  }
  return value;
}

// The first index at which the sum of masses up to it exceeds the target, which is a function of
// the sum of all and below it. Each warp adds up neighbours; the one with the place goes through
// its own again.
template <typename Masses, typename Target>
__device__ __forceinline__ Place first_past(const Masses& masses, int count, const Target& target,
                                            Scratch& scratch) {
  const int lane = threadIdx.x % kLanes, warp = threadIdx.x / kLanes;
  const int size = (count + kThreads - 1) / kThreads * kLanes;  // of a warp, in whole steps
  const int begin = warp * size, end = min(begin + size, count);
  Mass own = 0;
#pragma unroll 1
  for (int index = begin + lane; index < end; index += kLanes) own += masses(index);
  own = sum_of_warp(own);
  if (lane == 0) scratch.sums[warp] = own;
  __syncthreads();
  const Mass of_lane = lane < kWarps ? scratch.sums[lane] : 0;
  const Mass before = sum_of_warp(lane < warp ? of_lane : 0), total = sum_of_warp(of_lane);
  const Mass wanted = target(total);
  if (before <= wanted && wanted - before < own) {
    Mass rest = wanted - before;
#pragma unroll 1
    for (int step = begin; step < end; step += kLanes) {
      const Mass up_to = sum_up_to_lane(step + lane < end ? masses(step + lane) : 0);
      const int found = first_lane_where(up_to > rest);
      if (found >= 0) {
        const Mass less = __shfl_sync(kAllLanes, up_to, max(found - 1, 0));
        if (lane == 0) scratch.found = {step + found, found > 0 ? rest - less : rest};
        break;
      }
      rest -= __shfl_sync(kAllLanes, up_to, kLanes - 1);
    }
  }
  __syncthreads();
  return scratch.found;
}

// The lowest rank at which the mass up to it exceeds the target, in the bytes from `last` on.
template <typename Logit, typename Masses, typename Target>
__device__ __forceinline__ Mass edge_of(const Row<Logit>& row, float highest, const Masses& masses,
                                        const Target& target, int last, Scratch& scratch) {
  Mass prefix = 0, rest = 0;
#pragma unroll 1
  for (int shift = 48; shift >= last; shift -= 8) {
    scratch.histogram[threadIdx.x] = 0;
    __syncthreads();
#pragma unroll 1
    for (int code = threadIdx.x; code < row.codes; code += kThreads) {
      const float value = row[code];
      const Mass own = rank(code, value, highest);
      if (own >> shift >> 8 != prefix) continue;
      const Mass weight = masses(own, value);
      if (weight > 0) atomicAdd(&scratch.histogram[own >> shift & 255], weight);
    }
    __syncthreads();
    const Place digit = first_past(
        [&](int bin) { return scratch.histogram[bin]; }, kBins,
        [&](Mass total) { return shift == 48 ? target(total) : rest; }, scratch);
    prefix = prefix << 8 | digit.index;
    rest = digit.rest;
  }
  return prefix << last;
}

// Computes the row once, keeps it if it is short, and returns its maximum; NaN if any logit is.
template <typename Logit>
__device__ __forceinline__ float fill(const Row<Logit>& row, Scratch& scratch) {
  float highest = lowest();
  bool invalid = false;
#pragma unroll 2
  for (int code = threadIdx.x; code < row.codes; code += kThreads) {
    const float value = row.guided(code);
    if (row.codes <= kStored) row.stored[code] = value;
    highest = fmaxf(highest, value);
    invalid |= isnan(value);
  }
  highest = warp_maximum(highest);
  invalid = __any_sync(kAllLanes, invalid);
  if (threadIdx.x % kLanes == 0) {
    scratch.maxima[threadIdx.x / kLanes] = invalid ? __int_as_float(0x7FC00000) : highest;
  }
  __syncthreads();
  for (int warp = 0; warp < kWarps; ++warp) {
    highest = fmaxf(highest, scratch.maxima[warp]);
    invalid |= isnan(scratch.maxima[warp]);
  }
  return invalid ? __int_as_float(0x7FC00000) : highest;
}

// The lowest rank that is kept: first by top-k, which ignores the code, then by top-p. One loop, as
// the code for one of them is long.
template <typename Logit>
__device__ __forceinline__ Mass limit(const Row<Logit>& row, float highest, float top_k,
                                      float top_p, Scratch& scratch) {
  Mass edge = 0;
#pragma unroll 1
  for (int pass = 0; pass < 2; ++pass) {
    const bool by_count = pass == 0;
    if (by_count ? !(top_k >= 1.0f && top_k < row.codes) : top_p >= 1.0f) continue;
    const auto masses = [&](Mass own, float value) {
      if (by_count) return Mass{1};
      return own >= edge ? mass(value - highest) : Mass{0};
    };
    const auto target = [&](Mass total) {
      if (by_count) return total - static_cast<int>(top_k);
      const double share = (1.0 - static_cast<double>(top_p)) * static_cast<double>(total);
      return min(static_cast<Mass>(share), total - 1);
    };
    edge = edge_of(row, highest, masses, target, by_count ? 16 : 0, scratch);
  }
  return edge;
}

// A code; -1 if the logits are unusable.
template <typename Logit>
__device__ __forceinline__ int draw(const Row<Logit>& row, float top_k, float top_p,
                                    float temperature, float uniform, Scratch& scratch) {
  const float highest = fill(row, scratch);
  if (!isfinite(highest)) return -1;
  const Mass edge = limit(row, highest, top_k, top_p, scratch);
  const bool coldest = temperature < kColdest;
  const float inverse = 1.0f / temperature;
  const auto masses = [&](int code) {
    const float value = row[code];
    if (value == lowest() || rank(code, value, highest) < edge) return Mass{0};
    return coldest ? Mass{value == highest} : mass((value - highest) * inverse);
  };
  const auto target = [&](Mass total) {
    const double share = static_cast<double>(total) * static_cast<double>(uniform);
    return coldest ? Mass{0} : static_cast<Mass>(share);
  };
  return first_past(masses, row.codes, target, scratch).index;
}

template <typename Logit>
__device__ __forceinline__ void sample(const Logit* conditional, const Logit* unconditional,
                                       int shared, const float* parameters,
                                       const unsigned long long* seeds, int step, const int* given,
                                       int codes, int* tokens, int* error, int mask_token,
                                       Scratch& scratch) {
  const int position = blockIdx.x, image = blockIdx.y;
  const size_t at = static_cast<size_t>(image) * gridDim.x + position;
  const size_t other = shared ? position : at;
  const float* own = parameters + image * 4;
  const Row<Logit> row = {conditional + at * codes, unconditional + other * codes, own[0], codes,
                          scratch.logits};
  int token = given[at];
  if (token < 0 && own[0] >= 0.0f && own[1] >= 0.0f && own[2] >= 0.0f && own[3] >= 0.0f) {
    const float uniform = uniforms(seeds[image], step, position).token;
    token = draw(row, own[1], own[2], own[3], uniform, scratch);
  }
  if (threadIdx.x != 0) return;
  const bool valid = token >= 0 && (token < codes || token == mask_token);
  if (!valid) *error = 1;
  tokens[at] = valid ? token : 0;
}

}  // namespace top_k_top_p

extern "C" __global__ void __launch_bounds__(256, 4)
    sample_top_k_top_p_float(const float* conditional, const float* unconditional, int shared,
                             const float* parameters, const unsigned long long* seeds, int step,
                             const int* given, int codes, int* tokens, int* error,
                             int mask_token) {
  __shared__ top_k_top_p::Scratch scratch;
  top_k_top_p::sample(conditional, unconditional, shared, parameters, seeds, step, given, codes,
                      tokens, error, mask_token, scratch);
}

extern "C" __global__ void __launch_bounds__(256, 4)
    sample_top_k_top_p_half(const __half* conditional, const __half* unconditional, int shared,
                            const float* parameters, const unsigned long long* seeds, int step,
                            const int* given, int codes, int* tokens, int* error,
                            int mask_token) {
  __shared__ top_k_top_p::Scratch scratch;
  top_k_top_p::sample(conditional, unconditional, shared, parameters, seeds, step, given, codes,
                      tokens, error, mask_token, scratch);
}
