// Positions of caches that differ from image to image, put together:
//
//     target[a, m, p] = source[a, index[m, p], p]
//
// source and target [groups, .] float32, every group's numbers a stride of its own from the next;
// of each the first as [., rows, width]; index [count, rows] int32.
//
// Launch: one block of 256 threads per position of a group, grid = (count rows, groups).
// Memory: reads and writes every number once, and reads 4 bytes per position.

extern "C" __global__ void __launch_bounds__(256)
    gather_rows(const float* source, const int* index, int rows, int width, int source_stride,
                int target_stride, float* target) {
  const int place = blockIdx.x, row = place % rows;
  const int named = index[place] * rows + row;
  const float* read = source + static_cast<size_t>(blockIdx.y) * source_stride + named * width;
  float* written = target + static_cast<size_t>(blockIdx.y) * target_stride + place * width;
  for (int number = threadIdx.x; number < width; number += blockDim.x) {
    written[number] = read[number];
  }
}
