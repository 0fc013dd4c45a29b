// Top-k confidence masking: keep the most confident tokens, mask the rest again.
//
// With M tokens masked at the start, mask ratio g (column 0 of the parameters) and confidences sorted
// ascending:
//
//     k    = min(floor(M g), M - 1)
//     next = mask token where confidence < sorted[k], else the sampled token
//
// With at_least_one, for m tokens masked before the step (whose confidence is not infinite):
//
//     k    = max(1, min(floor(M g), m - 1))     at_least_one = 1
//     k    = min(max(1, floor(M g)), m - 1)     at_least_one = 2
//
// With ties, what is known or has confidence > sorted[k - 1] stays instead, if k > 0.
//
// confidence [batch, count] float32, sampled [batch, count] int32, parameters [batch, 4] float32,
// mask [batch, count] uint8 (not 0 where masked at the start)
// -> next_tokens [rows, count] int32, rows = batch or 2 batch (the same twice). count <= 4096.
//
// The k-th smallest is selected digit by digit (radix 256, most significant first) on keys in
// shared memory that order like the floats; NaN orders last, as in numpy.sort.
//
// Launch: one block of 256 threads per image.
// Shared memory: 4 bytes per token of the largest image (16 KiB), a histogram of 1 KiB, 20 bytes.
// Memory: reads 9 bytes per token, writes 4 bytes per token and row.

#include "warp.cuh"

constexpr int kMaxTokens = 4096;
constexpr int kDigits = 256;
constexpr unsigned kKnown = 0xFF800000u;  // the key of +infinity
constexpr int kKept = 1, kDecided = 2;    // of at_least_one

// Unsigned keys in the order of the floats: negative ones reversed, below the positive ones.
__device__ __forceinline__ unsigned key_of(float value) {
  const unsigned bits = __float_as_uint(value);
  if (isnan(value)) return 0xFFFFFFFFu;
  return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

__device__ __forceinline__ float value_of(unsigned key) {
  return __uint_as_float(key & 0x80000000u ? key & 0x7FFFFFFFu : ~key);
}

// Warp 0: the digit whose bin holds the element of this rank, and the rank within the bin.
__device__ void find_digit(const unsigned* histogram, unsigned* digit, unsigned* rank) {
  constexpr int kBins = kDigits / kLanes;
  const int lane = threadIdx.x;
  unsigned own = 0;
  for (int bin = 0; bin < kBins; ++bin) own += histogram[lane * kBins + bin];
  unsigned through = own;  // elements in the bins of this lane and those before
  for (int offset = 1; offset < kLanes; offset *= 2) {
    const unsigned before = __shfl_up_sync(kAllLanes, through, offset);
    if (lane >= offset) through += before;
  }
  const unsigned wanted = *rank;
  __syncwarp();
  if (lane != first_lane_where(through > wanted)) return;
  unsigned left = wanted - (through - own);
  int bin = lane * kBins;
  while (left >= histogram[bin]) left -= histogram[bin++];
  *digit = bin;
  *rank = left;
}

extern "C" __global__ void __launch_bounds__(256)
    remask(const float* confidence, const int* sampled, const float* parameters,
           const unsigned char* mask, int mask_token, int at_least_one, int ties, int count,
           int rows, int* next_tokens) {
  __shared__ unsigned keys[kMaxTokens];
  __shared__ unsigned histogram[kDigits];
  __shared__ unsigned digit, rank;
  __shared__ int started, undecided, with_ties;
  const int image = blockIdx.x, batch = gridDim.x, thread = threadIdx.x;
  const size_t first = static_cast<size_t>(image) * count;
  for (int at = thread; at < count; at += blockDim.x) keys[at] = key_of(confidence[first + at]);
  if (thread == 0) started = undecided = 0;
  __syncthreads();
  for (int at = thread; at < count; at += blockDim.x) {
    if (mask[first + at] != 0) atomicAdd(&started, 1);
    if (at_least_one && keys[at] != kKnown) atomicAdd(&undecided, 1);
  }
  __syncthreads();
  if (thread == 0) {
    int masked = static_cast<int>(floorf(static_cast<float>(started) * parameters[image * 4]));
    if (at_least_one == kDecided) masked = max(masked, 1);
    masked = min(masked, (at_least_one ? undecided : started) - 1);
    if (at_least_one == kKept) masked = max(masked, 1);
    masked = max(0, min(masked, count - 1));
    with_ties = ties && masked > 0;
    rank = with_ties ? masked - 1 : masked;
  }
  unsigned prefix = 0;
  for (int shift = 24; shift >= 0; shift -= 8) {
    for (int bin = thread; bin < kDigits; bin += blockDim.x) histogram[bin] = 0;
    __syncthreads();
    for (int at = thread; at < count; at += blockDim.x) {
      const bool same = shift == 24 || keys[at] >> (shift + 8) == prefix;
      if (same) atomicAdd(&histogram[keys[at] >> shift & (kDigits - 1)], 1u);
    }
    __syncthreads();
    if (thread < kLanes) find_digit(histogram, &digit, &rank);
    __syncthreads();
    prefix = prefix << 8 | digit;
  }
  const float threshold = value_of(prefix);
  for (int at = thread; at < count; at += blockDim.x) {
    const float own = confidence[first + at];
    const bool again = with_ties ? own <= threshold && keys[at] != kKnown : own < threshold;
    const int token = again ? mask_token : sampled[first + at];
    for (int row = image; row < rows; row += batch) {
      next_tokens[static_cast<size_t>(row) * count + at] = token;
    }
  }
}
