// Rows copied over and over into what is behind them:
//
//     target[n, c] = source[n, c mod period]     for c = first ... rows - 1
//
// source [., period, words], target [., rows, words], in words of 16 bytes (wide) or of 2.
//
// Launch: one block per row that is written, grid = (rows - first, n).
// Memory: writes every row once, and reads as many.

template <typename Word>
__device__ void copy_row(const void* source, void* target, size_t from, size_t to, int words) {
  const Word* read = static_cast<const Word*>(source) + from * words;
  Word* written = static_cast<Word*>(target) + to * words;
  for (int word = threadIdx.x; word < words; word += blockDim.x) written[word] = read[word];
}

extern "C" __global__ void __launch_bounds__(256)
    copy_rows(const void* source, void* target, int first, int period, int rows, int words,
              int wide) {
  const int row = first + blockIdx.x;
  const size_t from = static_cast<size_t>(blockIdx.y) * period + row % period;
  const size_t to = static_cast<size_t>(blockIdx.y) * rows + row;
  if (wide) {
    copy_row<uint4>(source, target, from, to, words);
  } else {
    copy_row<unsigned short>(source, target, from, to, words);
  }
}
