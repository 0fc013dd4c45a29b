// Guidance, softmax, sampling and confidence in one pass over the logits.
//
// For every masked position, with logits c (conditional) and u (unconditional), guidance scale s,
// sampling temperature T and masking temperature m (columns 3, 2 and 1 of the parameters):
//
//     l          = c + s (c - u)
//     token      ~ softmax(l / T)                by inverse CDF of one uniform; argmax if T = 0
//     confidence = log_softmax(l)[token] + m g   g = -log(-log v), v a second uniform
//
// With confidence_of 1 it is log_softmax(l / T)[token] + m g, with 2 l[token] + m g.
//
// A known position keeps its token, gets confidence +infinity, and reads no logits. With resample
// it draws a token again where mask [batch, count] is not 0, and gets that confidence all the same.
//
// conditional [batch, count, codes], unconditional the same or [1, count, codes] (shared), float32
// or float16; tokens [batch, count] int32; parameters [batch, 4] float32; seeds [batch] uint64
// -> sampled [batch, count] int32, confidence [batch, count] float32. error [1] becomes 1 if a
// logit is NaN or +infinity, a row is all -infinity, or T is NaN; the token is then 0.
// codes <= 65,536; logits aligned to 16 bytes.
//
// The row is cut into chunks of 128 codes, one warp each, four neighbouring codes a lane. The pass
// leaves every chunk's maximum and its sum of exponentials relative to that maximum, so no second
// pass for the row's maximum is needed; then warp 0 finds the chunk of the sample and reads only
// that one again. All in float32, which GPUs for graphics compute 32 to 64 times as fast as
// float64; order of sums and roundings are those of sample_tokens.py.
//
// Launch: one block per position, grid = (count, batch), up to 256 threads (a warp per chunk).
// Shared memory: 12 bytes per chunk (6 KiB).
// Memory: per masked position, 4 (float16: 2) bytes per code, twice with guidance.

#include <cuda_fp16.h>

#include "exponential.cuh"
#include "logarithm.cuh"
#include "philox.cuh"
#include "warp.cuh"

constexpr int kPerLane = 4;
constexpr int kChunk = kLanes * kPerLane;
constexpr int kMaxChunks = 65536 / kChunk;
constexpr float kLowestTemperature = 1e-30f;  // below it: the most likely code
constexpr int kTempered = 1, kLogit = 2;       // of confidence_of

__device__ __forceinline__ float minus_infinity() { return __int_as_float(0xFF800000); }
__device__ __forceinline__ float not_a_number() { return __int_as_float(0x7FC00000); }

struct Chunks {
  float maximum[kMaxChunks];  // NaN if any logit of the chunk is
  float sum[kMaxChunks];      // of exp(l - maximum)
  float tempered[kMaxChunks];  // of exp((l - maximum) / T)
};

// One row of logits with its guidance.
template <typename Logit>
struct Row {
  const Logit* conditional;
  const Logit* unconditional;
  float guidance;
  int codes;
};

struct Four {
  float of[kPerLane];
};

// Four neighbouring logits in one access where rows are aligned; -infinity past the last code.
__device__ __forceinline__ Four load(const float* logits, int first, int codes) {
  if (codes % kPerLane == 0 && first < codes) {
    const float4 all = *reinterpret_cast<const float4*>(logits + first);
    return {{all.x, all.y, all.z, all.w}};
  }
  Four four;
  for (int k = 0; k < kPerLane; ++k) {
    four.of[k] = first + k < codes ? logits[first + k] : minus_infinity();
  }
  return four;
}

__device__ __forceinline__ Four load(const __half* logits, int first, int codes) {
  if (codes % kPerLane == 0 && first < codes) {
    const uint2 all = *reinterpret_cast<const uint2*>(logits + first);
    const unsigned halves[kPerLane] = {all.x & 0xFFFFu, all.x >> 16, all.y & 0xFFFFu, all.y >> 16};
    Four four;
    for (int k = 0; k < kPerLane; ++k) {
      four.of[k] = __half2float(__ushort_as_half(static_cast<unsigned short>(halves[k])));
    }
    return four;
  }
  Four four;
  for (int k = 0; k < kPerLane; ++k) {
    four.of[k] = first + k < codes ? __half2float(logits[first + k]) : minus_infinity();
  }
  return four;
}

template <typename Logit>
__device__ __forceinline__ Four guided(const Row<Logit>& row, int first) {
  Four four = load(row.conditional, first, row.codes);
  if (row.guidance == 0.0f) return four;
  const Four other = load(row.unconditional, first, row.codes);
  for (int k = 0; k < kPerLane; ++k) {
    const float c = four.of[k];  // an excluded code stays excluded
    four.of[k] = c == minus_infinity() ? c : c + row.guidance * (c - other.of[k]);
  }
  return four;
}

__device__ __forceinline__ float chunk_maximum(const Four& four) {
  float highest = minus_infinity();
  bool invalid = false;
  for (int k = 0; k < kPerLane; ++k) {
    highest = fmaxf(highest, four.of[k]);
    invalid |= isnan(four.of[k]);
  }
  highest = warp_maximum(highest);
  return __any_sync(kAllLanes, invalid) ? not_a_number() : highest;
}

__device__ __forceinline__ Four weigh(const Four& four, float maximum, float inverse) {
  Four weights;
  for (int k = 0; k < kPerLane; ++k) {
    weights.of[k] = maximum == minus_infinity() ? 0.0f : exponential((four.of[k] - maximum) * inverse);
  }
  return weights;
}

__device__ __forceinline__ float lane_sum(const Four& weights) {
  return ((weights.of[0] + weights.of[1]) + weights.of[2]) + weights.of[3];
}

// The one pass: each warp takes every so many-th chunk.
template <typename Logit>
__device__ void summarise(const Row<Logit>& row, float inverse, int chunks, Chunks& out) {
  const int lane = threadIdx.x % kLanes, warps = blockDim.x / kLanes;
  for (int chunk = threadIdx.x / kLanes; chunk < chunks; chunk += warps) {
    const Four logits = guided(row, chunk * kChunk + lane * kPerLane);
    const float maximum = chunk_maximum(logits);
    const float sum = warp_sum(lane_sum(weigh(logits, maximum, 1.0f)));
    float tempered = sum;
    if (inverse != 1.0f) tempered = warp_sum(lane_sum(weigh(logits, maximum, inverse)));
    if (lane == 0) {
      out.maximum[chunk] = maximum;
      out.sum[chunk] = sum;
      out.tempered[chunk] = tempered;
    }
  }
}

__device__ __forceinline__ float row_maximum(const Chunks& chunks, int count) {
  float highest = minus_infinity();
  bool invalid = false;
  for (int chunk = threadIdx.x; chunk < count; chunk += kLanes) {
    highest = fmaxf(highest, chunks.maximum[chunk]);
    invalid |= isnan(chunks.maximum[chunk]);
  }
  highest = warp_maximum(highest);
  return __any_sync(kAllLanes, invalid) ? not_a_number() : highest;
}

// A chunk's sum relative to the maximum of the row.
__device__ __forceinline__ float scaled(float sum, float maximum, float highest, float inverse) {
  return sum * exponential((maximum - highest) * inverse);
}

struct Place {
  int index;
  float before;  // weight before it
};

// Running total over the lanes up to the first that exceeds the target; `weight` is this lane's.
__device__ Place find_lane(float weight, float target, float before, int lanes) {
  Place found = {lanes - 1, before};
  float cumulated = before;
  for (int lane = 0; lane < lanes; ++lane) {
    const float own = __shfl_sync(kAllLanes, weight, lane);
    if (own > 0.0f) found = {lane, cumulated};
    cumulated += own;
    if (cumulated > target) break;
  }
  return found;
}

__device__ float total_of(float weight, int lanes) {
  float total = 0.0f;
  for (int lane = 0; lane < lanes; ++lane) total += __shfl_sync(kAllLanes, weight, lane);
  return total;
}

// Warp 0: the sums of all chunks in at most 32 groups of neighbours, one a lane.
__device__ float group_sum(const Chunks& chunks, const float* sums, int count, float highest,
                           float inverse) {
  const int size = (count + kLanes - 1) / kLanes;
  const int first = threadIdx.x * size;
  float total = 0.0f;
  for (int chunk = first; chunk < min(first + size, count); ++chunk) {
    total += scaled(sums[chunk], chunks.maximum[chunk], highest, inverse);
  }
  return total;
}

__device__ Place find_chunk(const Chunks& chunks, int count, Place group, float highest,
                            float inverse, float target) {
  const int size = (count + kLanes - 1) / kLanes;
  Place found = {group.index * size, group.before};
  float cumulated = group.before;
  for (int chunk = group.index * size; chunk < min((group.index + 1) * size, count); ++chunk) {
    const float own = scaled(chunks.tempered[chunk], chunks.maximum[chunk], highest, inverse);
    if (own > 0.0f) found = {chunk, cumulated};
    cumulated += own;
    if (cumulated > target) break;
  }
  return found;
}

// Warp 0: group, chunk, lane, code. Rounding may leave the target past the last candidate of a
// level, which then takes it.
template <typename Logit>
__device__ int inverse_cdf(const Row<Logit>& row, const Chunks& chunks, int count, float highest,
                           float inverse, float uniform) {
  const int size = (count + kLanes - 1) / kLanes, groups = (count + size - 1) / size;
  const float weight = group_sum(chunks, chunks.tempered, count, highest, inverse);
  const float target = uniform * total_of(weight, groups);
  const Place group = find_lane(weight, target, 0.0f, groups);
  const Place chunk = find_chunk(chunks, count, group, highest, inverse, target);
  const float maximum = chunks.maximum[chunk.index];
  const float scale = exponential((maximum - highest) * inverse);
  const int first = chunk.index * kChunk;
  const Four weights = weigh(guided(row, first + threadIdx.x * kPerLane), maximum, inverse);
  const Place lane = find_lane(lane_sum(weights) * scale, target, chunk.before, kLanes);
  int code = 0;
  float cumulated = lane.before;
  for (int k = 0; k < kPerLane; ++k) {
    const float own = __shfl_sync(kAllLanes, weights.of[k], lane.index);
    if (own > 0.0f) code = k;
    cumulated += own * scale;
    if (cumulated > target) break;
  }
  return first + lane.index * kPerLane + code;
}

// Warp 0: the first code whose logit is the maximum.
template <typename Logit>
__device__ int most_likely(const Row<Logit>& row, const Chunks& chunks, int count, float highest) {
  int chunk = threadIdx.x;
  while (chunk < count && chunks.maximum[chunk] != highest) chunk += kLanes;
  for (int offset = kLanes / 2; offset > 0; offset /= 2) {
    chunk = min(chunk, __shfl_xor_sync(kAllLanes, chunk, offset));
  }
  const Four logits = guided(row, chunk * kChunk + threadIdx.x * kPerLane);
  int first = kPerLane;
  for (int k = kPerLane - 1; k >= 0; --k) first = logits.of[k] == highest ? k : first;
  const int lane = first_lane_where(first < kPerLane);
  return chunk * kChunk + lane * kPerLane + __shfl_sync(kAllLanes, first, lane);
}

template <typename Logit>
__device__ void sample(const Logit* conditional, const Logit* unconditional, int shared,
                       const int* tokens, const float* parameters, const unsigned long long* seeds,
                       int step, int mask_token, int codes, int* sampled, float* confidence,
                       int* error, int confidence_of, const unsigned char* mask, int resample,
                       Chunks& chunks) {
  const int position = blockIdx.x, image = blockIdx.y;
  const size_t at = static_cast<size_t>(image) * gridDim.x + position;
  const bool known = tokens[at] != mask_token;
  if (known && (!resample || mask[at] == 0)) {
    if (threadIdx.x == 0) {
      sampled[at] = tokens[at];
      confidence[at] = -minus_infinity();
    }
    return;
  }
  const float masking_temperature = parameters[image * 4 + 1];
  const float temperature = parameters[image * 4 + 2];
  const size_t other = shared ? position : at;
  const Row<Logit> row = {conditional + at * codes, unconditional + other * codes,
                          parameters[image * 4 + 3], codes};
  const bool coldest = temperature < kLowestTemperature;
  const float inverse = coldest ? 1.0f : 1.0f / temperature;
  const int count = (codes + kChunk - 1) / kChunk;
  summarise(row, inverse, count, chunks);
  __syncthreads();
  if (threadIdx.x >= kLanes) return;

  const float highest = row_maximum(chunks, count);
  int code = 0;
  float found = not_a_number();
  const Uniforms random = uniforms(seeds[image], step, position);
  if (isfinite(highest) && !isnan(temperature)) {
    code = coldest ? most_likely(row, chunks, count, highest)
                   : inverse_cdf(row, chunks, count, highest, inverse, random.token);
    const int size = (count + kLanes - 1) / kLanes, groups = (count + size - 1) / size;
    const bool tempered = confidence_of == kTempered;
    const float scale = tempered ? inverse : 1.0f;
    const float* sums = tempered ? chunks.tempered : chunks.sum;
    const float total = total_of(group_sum(chunks, sums, count, highest, scale), groups);
    const Four logits = guided(row, code / kPerLane * kPerLane);
    float logit = logits.of[0];  // chosen without an index, which would put the four on the stack
    for (int k = 1; k < kPerLane; ++k) logit = code % kPerLane == k ? logits.of[k] : logit;
    found = confidence_of == kLogit ? logit : (logit - highest) * scale - logarithm(total);
  }
  if (threadIdx.x != 0) return;
  if (isnan(found)) *error = 1;
  const float gumbel = -logarithm(-logarithm(random.noise));
  sampled[at] = code;
  confidence[at] = known ? -minus_infinity() : found + masking_temperature * gumbel;
}

extern "C" __global__ void __launch_bounds__(256)
    sample_tokens_float(const float* conditional, const float* unconditional, int shared,
                        const int* tokens, const float* parameters,
                        const unsigned long long* seeds, int step, int mask_token, int codes,
                        int* sampled, float* confidence, int* error, int confidence_of,
                        const unsigned char* mask, int resample) {
  __shared__ Chunks chunks;
  sample(conditional, unconditional, shared, tokens, parameters, seeds, step, mask_token, codes,
         sampled, confidence, error, confidence_of, mask, resample, chunks);
}

extern "C" __global__ void __launch_bounds__(256)
    sample_tokens_half(const __half* conditional, const __half* unconditional, int shared,
                       const int* tokens, const float* parameters,
                       const unsigned long long* seeds, int step, int mask_token, int codes,
                       int* sampled, float* confidence, int* error, int confidence_of,
                       const unsigned char* mask, int resample) {
  __shared__ Chunks chunks;
  sample(conditional, unconditional, shared, tokens, parameters, seeds, step, mask_token, codes,
         sampled, confidence, error, confidence_of, mask, resample, chunks);
}
