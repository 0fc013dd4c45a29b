// Both halves of a batch from one of them and a difference:
//
//     both[k, b] = own[k, b],  both[k, batch + b] = own[k, b] + difference[k, b]
//
// own and difference [k, half] -> both [k, 2 half], float32; half = batch width.
//
// Launch: one thread per number of own, blocks of 256.
// Memory: reads and writes 8 bytes per number.

extern "C" __global__ void __launch_bounds__(256)
    add_half(const float* own, const float* difference, int half, int numbers, float* both) {
  const int number = blockIdx.x * blockDim.x + threadIdx.x;
  if (number >= numbers) return;
  const int k = number / half, at = number % half;
  both[2 * k * half + at] = own[number];
  both[(2 * k + 1) * half + at] = own[number] + difference[number];
}
