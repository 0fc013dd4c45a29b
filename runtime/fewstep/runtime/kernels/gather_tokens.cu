// Tokens of images in the order in which they are decided, for one half of a batch or both:
//
//     target[k, p] = source[p mod batch, index[k, p]]
//
// source [batch, count, channels] float32, index [k, rows] int32 -> target [k, rows, channels]
// float32, rows = batch or 2 batch.
//
// Launch: one thread per number of the target, blocks of 256.
// Memory: reads 4 bytes and writes 4 bytes per number, and reads 4 bytes per token.

extern "C" __global__ void __launch_bounds__(256)
    gather_tokens(const float* source, const int* index, int batch, int count, int channels,
                  int rows, int numbers, float* target) {
  const int number = blockIdx.x * blockDim.x + threadIdx.x;
  if (number >= numbers) return;
  const int token = number / channels, channel = number % channels;
  const int image = token % rows % batch;
  target[number] = source[(image * count + index[token]) * channels + channel];
}
