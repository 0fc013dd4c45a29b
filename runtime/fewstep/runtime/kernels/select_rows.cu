// Which positions are computed again, and which are taken from caches: the tokens that are decided
// next (known ... known + following - 1) come first, then those decided last (known - previous ...
// known - 1), and then the least alike; equal ones in their order.
//
// similarity [batch, halves, count] float32, finite -> selected [most, rows], rest [count - most,
// rows] int32, rows = halves batch. count <= 8192.
//
// Launch: one block of 256 threads per row.
// Shared memory: 4 bytes per position of the largest image (32 KiB).
// Memory: reads and writes 4 bytes per position and row.

constexpr int kMostPositions = 8192;

extern "C" __global__ void __launch_bounds__(256)
    select_rows(const float* similarity, int known, int previous, int following, int batch,
                int count, int most, int* selected, int* rest) {
  __shared__ float alike[kMostPositions];
  const int row = blockIdx.x, rows = gridDim.x;
  const int place = row % batch * (rows / batch) + row / batch;
  const int first = known - previous, end = known + following;
  for (int position = threadIdx.x; position < count; position += blockDim.x) {
    alike[position] = similarity[place * count + position];
  }
  __syncthreads();
  for (int position = threadIdx.x; position < count; position += blockDim.x) {
    int rank = previous + following;
    if (known <= position && position < end) {
      rank = position - known;
    } else if (first <= position && position < known) {
      rank = following + position - first;
    } else {
      const float own = alike[position];
      for (int other = 0; other < count; ++other) {
        const float that = alike[other];
        const bool ahead = that < own || (that == own && other < position);
        rank += ahead && !(first <= other && other < end);
      }
    }
    if (rank < most) {
      selected[rank * rows + row] = position;
    } else {
      rest[(rank - most) * rows + row] = position;
    }
  }
}
