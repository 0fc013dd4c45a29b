// CUDA's small vectors, with its alignments, and their make_ functions.
#pragma once

struct uint3 {
  unsigned x, y, z;
};

struct dim3 {
  unsigned x = 1, y = 1, z = 1;
};

#define SIMT_VECTOR_2(NAME, TYPE)         \
  struct alignas(2 * sizeof(TYPE)) NAME { \
    TYPE x, y;                            \
  };                                      \
  inline NAME make_##NAME(TYPE x, TYPE y) { return {x, y}; }

#define SIMT_VECTOR_3(NAME, TYPE) \
  struct NAME {                   \
    TYPE x, y, z;                 \
  };                              \
  inline NAME make_##NAME(TYPE x, TYPE y, TYPE z) { return {x, y, z}; }

// Vectors of 32 bytes are aligned like those of 16: no load is wider.
#define SIMT_VECTOR_4(NAME, TYPE)                                 \
  struct alignas(sizeof(TYPE) < 4 ? 4 * sizeof(TYPE) : 16) NAME { \
    TYPE x, y, z, w;                                              \
  };                                                              \
  inline NAME make_##NAME(TYPE x, TYPE y, TYPE z, TYPE w) { return {x, y, z, w}; }

SIMT_VECTOR_2(char2, signed char)
SIMT_VECTOR_2(uchar2, unsigned char)
SIMT_VECTOR_2(short2, short)
SIMT_VECTOR_2(ushort2, unsigned short)
SIMT_VECTOR_2(int2, int)
SIMT_VECTOR_2(uint2, unsigned)
SIMT_VECTOR_2(longlong2, long long)
SIMT_VECTOR_2(ulonglong2, unsigned long long)
SIMT_VECTOR_2(float2, float)
SIMT_VECTOR_2(double2, double)

SIMT_VECTOR_3(uchar3, unsigned char)
SIMT_VECTOR_3(int3, int)
SIMT_VECTOR_3(float3, float)

SIMT_VECTOR_4(char4, signed char)
SIMT_VECTOR_4(uchar4, unsigned char)
SIMT_VECTOR_4(short4, short)
SIMT_VECTOR_4(ushort4, unsigned short)
SIMT_VECTOR_4(int4, int)
SIMT_VECTOR_4(uint4, unsigned)
SIMT_VECTOR_4(float4, float)
SIMT_VECTOR_4(double4, double)

inline uint3 make_uint3(unsigned x, unsigned y, unsigned z) { return {x, y, z}; }
