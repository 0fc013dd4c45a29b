// Tokens of images from the order in which they were decided to their places:
//
//     target[b, index[k, b]] = source[k, b]
//
// source [count, rows, channels] float32, index [count, rows] int32, a permutation in every column
// -> target [batch, count, channels] float32; rows = batch or 2 batch, of which the first half is
// read.
//
// Launch: one thread per number of the target, blocks of 256.
// Memory: reads 4 bytes and writes 4 bytes per number, and reads 4 bytes per token.

extern "C" __global__ void __launch_bounds__(256)
    scatter_tokens(const float* source, const int* index, int batch, int count, int channels,
                   int rows, int numbers, float* target) {
  const int number = blockIdx.x * blockDim.x + threadIdx.x;
  if (number >= numbers) return;
  const int token = number / channels, channel = number % channels;
  const int k = token / batch, image = token % batch;
  const int from = k * rows + image;
  target[(image * count + index[from]) * channels + channel] = source[from * channels + channel];
}
