// Decoder output to pixels: clamp to 0...1, scale to 255, round to nearest even, channels last.
//
// image [batch, 3, pixels] float32 or float16 -> out [batch, pixels, 3] uint8. error [1] becomes 1
// if a value is NaN, which is written as 0.
//
// Launch: one thread per pixel, grid = (blocks of 256 over pixels, batch).
// Memory: reads 12 (float16: 6) bytes and writes 3 bytes per pixel.

#include <cuda_fp16.h>

template <typename Value>
__device__ __forceinline__ void pixel(const Value* image, int pixels, unsigned char* out,
                                      int* error) {
  const int at = blockIdx.x * blockDim.x + threadIdx.x;
  if (at >= pixels) return;
  const size_t first = static_cast<size_t>(blockIdx.y) * 3 * pixels;
  for (int channel = 0; channel < 3; ++channel) {
    const float value = static_cast<float>(image[first + static_cast<size_t>(channel) * pixels + at]);
    if (isnan(value)) *error = 1;
    const float clamped = fminf(fmaxf(value, 0.0f), 1.0f);
    out[first + static_cast<size_t>(at) * 3 + channel] =
        static_cast<unsigned char>(rintf(clamped * 255.0f));
  }
}

extern "C" __global__ void __launch_bounds__(256)
    to_pixels_float(const float* image, int pixels, unsigned char* out, int* error) {
  pixel(image, pixels, out, error);
}

extern "C" __global__ void __launch_bounds__(256)
    to_pixels_half(const __half* image, int pixels, unsigned char* out, int* error) {
  pixel(image, pixels, out, error);
}
