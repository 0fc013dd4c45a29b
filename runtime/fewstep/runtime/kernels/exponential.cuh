// exp in float32 for arguments <= 87; the same operations as exponential.py, so the same bits.
//
// Cody and Waite's reduction x = n ln 2 + r, then the degree-6 polynomial of the Cephes library
// (expf). Relative error below 1.2e-7; exactly 0 below -87. Compile without contraction to FMA.
#pragma once

__device__ __forceinline__ float exponential(float x) {
  const float lowest = -87.0f;
  const float clipped = fmaxf(x, lowest);
  const float n = floorf(clipped * 1.44269504f + 0.5f);
  const float r = clipped - n * 0.693359375f - n * -2.12194440e-4f;
  float p = 1.9875691500e-4f * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  const float power = __int_as_float((static_cast<int>(n) + 127) << 23);
  return x > lowest ? p * power : 0.0f;
}
