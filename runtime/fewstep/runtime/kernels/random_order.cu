// The order in which the tokens of an image are decided: given ones first, in their order in the
// image; then the others by the first words of Philox for the counters (position, 0, 0, 2), and by
// their position where these are equal.
//
//     order[r] = the position with rank r
//
// seeds [batch] uint64, given [batch, count] uint8 -> order [count, rows] int32, rows = batch or
// 2 batch (the same twice). count <= 4096.
//
// Launch: one block of 256 threads per image.
// Shared memory: 8 bytes per token of the largest image (32 KiB).
// Memory: reads 1 byte and writes 4 bytes per token and row.

#include "philox.cuh"

constexpr int kMostOrdered = 4096;

extern "C" __global__ void __launch_bounds__(256)
    random_order(const unsigned long long* seeds, const unsigned char* given, int batch, int count,
                 int rows, int* order) {
  __shared__ unsigned long long keys[kMostOrdered];
  const int image = blockIdx.x;
  const unsigned long long seed = seeds[image];
  const uint2 key = make_uint2(static_cast<unsigned>(seed), static_cast<unsigned>(seed >> 32));
  for (int position = threadIdx.x; position < count; position += blockDim.x) {
    const uint4 words = philox(make_uint4(static_cast<unsigned>(position), 0u, 0u, 2u), key);
    const unsigned long long at = position;
    const unsigned long long drawn =
        (1ull << 48) | (static_cast<unsigned long long>(words.x) << 16) | at;
    keys[position] = given[image * count + position] != 0 ? at : drawn;
  }
  __syncthreads();
  for (int position = threadIdx.x; position < count; position += blockDim.x) {
    const unsigned long long own = keys[position];
    int rank = 0;
    for (int other = 0; other < count; ++other) rank += keys[other] < own;
    for (int row = image; row < rows; row += batch) order[rank * rows + row] = position;
  }
}
