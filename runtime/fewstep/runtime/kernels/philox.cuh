// Philox4x32-10 (Salmon, Moraes, Dror and Shaw, SC 2011); the same words as philox.py.
//
// Key: the image's 64-bit seed. Counter: (position, step, 0, 0).
#pragma once

struct Uniforms {
  float token;  // strictly between 0 and 1
  float noise;  // strictly between 0 and 1
};

__device__ __forceinline__ uint4 philox(uint4 counter, uint2 key) {
  for (int round = 0; round < 10; ++round) {
    const unsigned high0 = __umulhi(0xD2511F53u, counter.x);
    const unsigned low0 = 0xD2511F53u * counter.x;
    const unsigned high1 = __umulhi(0xCD9E8D57u, counter.z);
    const unsigned low1 = 0xCD9E8D57u * counter.z;
    counter = make_uint4(high1 ^ counter.y ^ key.x, low1, high0 ^ counter.w ^ key.y, low0);
    key.x += 0x9E3779B9u;
    key.y += 0xBB67AE85u;
  }
  return counter;
}

// The upper 23 bits plus a half: exact in float32, never 0 or 1.
__device__ __forceinline__ float unit(unsigned word) {
  return (static_cast<float>(word >> 9) + 0.5f) * 1.1920928955078125e-7f;
}

__device__ __forceinline__ Uniforms uniforms(unsigned long long seed, int step, int position) {
  const uint2 key = make_uint2(static_cast<unsigned>(seed), static_cast<unsigned>(seed >> 32));
  const uint4 words = philox(
      make_uint4(static_cast<unsigned>(position), static_cast<unsigned>(step), 0u, 0u), key);
  return {unit(words.x), unit(words.y)};
}
