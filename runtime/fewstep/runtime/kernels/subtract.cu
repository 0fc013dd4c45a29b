// The difference of two arrays of one shape, out = a - b, float32.
//
// Launch: one thread per number, blocks of 256.
// Memory: reads 8 bytes and writes 4 bytes per number.

extern "C" __global__ void __launch_bounds__(256)
    subtract(const float* a, const float* b, int numbers, float* out) {
  const int number = blockIdx.x * blockDim.x + threadIdx.x;
  if (number < numbers) out[number] = a[number] - b[number];
}
