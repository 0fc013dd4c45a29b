// How far the values of every position have changed from one iteration to the next:
//
//     s = mean over heads of  v.c / max(|v| |c|, 1e-20)     v now, c before, of one head
//
// values and cached [count, rows, heads own] float32 -> similarity [batch, halves, count] float32,
// rows = halves batch. error [1] becomes 1 if a number is not finite; it counts as 0.
//
// Launch: one warp per position and row, grid = (count, rows).
// Memory: reads 8 bytes per number of the values, writes 4 bytes per position and row.

#include "warp.cuh"

extern "C" __global__ void __launch_bounds__(32)
    similarity(const float* values, const float* cached, int heads, int own, int batch,
               float* similarity, int* error) {
  const int position = blockIdx.x, row = blockIdx.y, count = gridDim.x, rows = gridDim.y;
  const size_t start = (static_cast<size_t>(position) * rows + row) * heads * own;
  float total = 0.0f;
  for (int head = 0; head < heads; ++head) {
    float product = 0.0f, square = 0.0f, other = 0.0f;
    for (int number = threadIdx.x; number < own; number += kLanes) {
      const float v = values[start + head * own + number];
      const float c = cached[start + head * own + number];
      product += v * c;
      square += v * v;
      other += c * c;
    }
    const float norms = __fsqrt_rn(warp_sum(square)) * __fsqrt_rn(warp_sum(other));
    total += __fdiv_rn(warp_sum(product), fmaxf(norms, 1e-20f));
  }
  if (threadIdx.x != 0) return;
  float alike = __fdiv_rn(total, static_cast<float>(heads));
  if (!isfinite(alike)) {
    *error = 1;
    alike = 0.0f;
  }
  const int place = row % batch * (rows / batch) + row / batch;
  similarity[place * count + position] = alike;
}
