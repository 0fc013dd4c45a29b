// log in float32 for positive normal arguments; the same operations as logarithm.py, so the same
// bits.
//
// x = m 2^n with sqrt(1/2) <= m < sqrt(2), then the degree-8 polynomial of the Cephes library (logf)
// in m - 1. Relative error below 2e-7, also near 1. Compile without contraction to FMA.
#pragma once

__device__ __forceinline__ float logarithm(float x) {
  const int bits = __float_as_int(x);
  float n = static_cast<float>((bits >> 23) - 126);
  float m = __int_as_float((bits & 0x7FFFFF) | 0x3F000000);  // 1/2 <= m < 1
  if (m < 0.707106781186547524f) {
    n -= 1.0f;
    m += m;
  }
  m -= 1.0f;
  const float square = m * m;
  float p = 7.0376836292e-2f * m + -1.1514610310e-1f;
  p = p * m + 1.1676998740e-1f;
  p = p * m + -1.2420140846e-1f;
  p = p * m + 1.4249322787e-1f;
  p = p * m + -1.6668057665e-1f;
  p = p * m + 2.0000714765e-1f;
  p = p * m + -2.4999993993e-1f;
  p = p * m + 3.3333331174e-1f;
  float y = p * m * square;
  y += n * -2.12194440e-4f;
  y -= 0.5f * square;
  return m + y + n * 0.693359375f;
}
