// Positions of caches that differ from image to image, put together:
//
//     target[a, m, p] = source[a, index[m, p], p]
//
// source and target [groups, .] of 4 bytes a number, every group's numbers a stride of its own from
// the next; of each the first as [., rows, width]; index [count, rows] int32.
//
// Launch: one block of 256 threads per position of a group, grid = (count rows, groups).
// Memory: reads and writes every number once, and reads 4 bytes per position.

extern "C" __global__ void __launch_bounds__(256)
    gather_rows(const unsigned* source, const int* index, int rows, int width, int source_stride,
                int target_stride, unsigned* target) {
  const size_t place = blockIdx.x, row = place % rows;
  const size_t named = static_cast<size_t>(index[place]) * rows + row;
  const unsigned* read = source + static_cast<size_t>(blockIdx.y) * source_stride + named * width;
  unsigned* written = target + static_cast<size_t>(blockIdx.y) * target_stride + place * width;
  for (int number = threadIdx.x; number < width; number += blockDim.x) {
    written[number] = read[number];
  }
}
