// Normal numbers from Philox, by the method of Box and Muller; the same operations as normal.py, so
// the same bits. Compile without contraction to FMA.
//
// Key: the image's 64-bit seed. Counter: (position, step, index, 1).
#pragma once

#include "logarithm.cuh"
#include "philox.cuh"

__device__ __forceinline__ float2 cosine_and_sine(float turns) {  // of so many turns, 0 ... 1
  const float quarters = turns * 4.0f;
  const float nearest = floorf(quarters + 0.5f);
  const float x = (quarters - nearest) * 1.57079637f;
  const float z = x * x;
  float sine = -1.9515295891e-4f * z + 8.3321608736e-3f;
  sine = (sine * z + -1.6666654611e-1f) * z * x + x;
  float cosine = 2.443315711809948e-5f * z + -1.388731625493765e-3f;
  cosine = (cosine * z + 4.166664568298827e-2f) * z * z - 0.5f * z + 1.0f;
  switch (static_cast<int>(nearest) & 3) {
    case 0:
      return make_float2(cosine, sine);
    case 1:
      return make_float2(-sine, cosine);
    case 2:
      return make_float2(-cosine, -sine);
    default:
      return make_float2(sine, -cosine);
  }
}

__device__ __forceinline__ float2 normal_pair(unsigned first, unsigned second) {
  const float radius = __fsqrt_rn(-2.0f * logarithm(unit(first)));
  const float2 direction = cosine_and_sine(unit(second));
  return make_float2(radius * direction.x, radius * direction.y);
}

// The number `channel` of a token at a step.
__device__ __forceinline__ float normal(unsigned long long seed, int position, int step,
                                        int channel) {
  const uint2 key = make_uint2(static_cast<unsigned>(seed), static_cast<unsigned>(seed >> 32));
  const uint4 words =
      philox(make_uint4(static_cast<unsigned>(position), static_cast<unsigned>(step),
                        static_cast<unsigned>(channel / 4), 1u),
             key);
  const bool later = channel & 2;
  const float2 two = normal_pair(later ? words.z : words.x, later ? words.w : words.y);
  return channel & 1 ? two.y : two.x;
}
