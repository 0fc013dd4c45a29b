// CUDA's functions of single numbers: bits, conversions, rounding, and the names of <math.h>.
//
// Approximations of the device (__expf, rsqrtf, …) are here as exact as the C library makes them:
// results agree to the device's documented error, not to the bit.
#pragma once

#include <assert.h>
#include <limits.h>
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

// Macros, because some C libraries declare functions of these names.
#define __expf(x) expf(x)
#define __exp10f(x) exp10f(x)
#define __logf(x) logf(x)
#define __log2f(x) log2f(x)
#define __log10f(x) log10f(x)
#define __powf(x, y) powf(x, y)
#define __sinf(x) sinf(x)
#define __cosf(x) cosf(x)
#define __tanf(x) tanf(x)
#define __fdividef(x, y) ((x) / (y))
#define rsqrtf(x) (1.0f / sqrtf(x))
#define rsqrt(x) (1.0 / sqrt(x))

// ---- smaller and larger -------------------------------------------------------------------------

// CUDA's overloads. Of a number and NaN, the number.
#define SIMT_MINIMUM_AND_MAXIMUM(RESULT, LEFT, RIGHT) \
  inline RESULT min(LEFT left, RIGHT right) {         \
    const RESULT one = left, other = right;           \
    return one < other ? one : other;                 \
  }                                                   \
  inline RESULT max(LEFT left, RIGHT right) {         \
    const RESULT one = left, other = right;           \
    return one > other ? one : other;                 \
  }

#define SIMT_MINIMUM_AND_MAXIMUM_WITH_UNSIGNED(TYPE)                    \
  SIMT_MINIMUM_AND_MAXIMUM(TYPE, TYPE, TYPE)                            \
  SIMT_MINIMUM_AND_MAXIMUM(unsigned TYPE, unsigned TYPE, unsigned TYPE) \
  SIMT_MINIMUM_AND_MAXIMUM(unsigned TYPE, unsigned TYPE, TYPE)          \
  SIMT_MINIMUM_AND_MAXIMUM(unsigned TYPE, TYPE, unsigned TYPE)

SIMT_MINIMUM_AND_MAXIMUM_WITH_UNSIGNED(int)
SIMT_MINIMUM_AND_MAXIMUM_WITH_UNSIGNED(long)
SIMT_MINIMUM_AND_MAXIMUM_WITH_UNSIGNED(long long)

inline float min(float left, float right) { return fminf(left, right); }
inline float max(float left, float right) { return fmaxf(left, right); }
inline double min(double left, double right) { return fmin(left, right); }
inline double max(double left, double right) { return fmax(left, right); }
inline double min(float left, double right) { return fmin(left, right); }
inline double max(float left, double right) { return fmax(left, right); }
inline double min(double left, float right) { return fmin(left, right); }
inline double max(double left, float right) { return fmax(left, right); }

// ---- bits ---------------------------------------------------------------------------------------

namespace simt {

template <class To, class From>
To reinterpret(From value) {
  static_assert(sizeof(To) == sizeof(From), "only the type changes, not the size");
  To result;
  memcpy(&result, &value, sizeof result);
  return result;
}

}  // namespace simt

inline int __float_as_int(float x) { return simt::reinterpret<int>(x); }
inline unsigned __float_as_uint(float x) { return simt::reinterpret<unsigned>(x); }
inline float __int_as_float(int x) { return simt::reinterpret<float>(x); }
inline float __uint_as_float(unsigned x) { return simt::reinterpret<float>(x); }
inline long long __double_as_longlong(double x) { return simt::reinterpret<long long>(x); }
inline double __longlong_as_double(long long x) { return simt::reinterpret<double>(x); }

inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __ffsll(long long x) { return __builtin_ffsll(x); }
inline int __clz(int x) { return x == 0 ? 32 : __builtin_clz(unsigned(x)); }
inline int __clzll(long long x) { return x == 0 ? 64 : __builtin_clzll((unsigned long long)x); }

inline unsigned __brev(unsigned x) {
  x = (x >> 1 & 0x55555555u) | (x & 0x55555555u) << 1;
  x = (x >> 2 & 0x33333333u) | (x & 0x33333333u) << 2;
  x = (x >> 4 & 0x0f0f0f0fu) | (x & 0x0f0f0f0fu) << 4;
  return __builtin_bswap32(x);
}

inline unsigned long long __brevll(unsigned long long x) {
  return (unsigned long long)__brev(unsigned(x)) << 32 | __brev(unsigned(x >> 32));
}

inline unsigned __umulhi(unsigned x, unsigned y) { return unsigned(uint64_t(x) * y >> 32); }
inline int __mulhi(int x, int y) { return int(int64_t(x) * y >> 32); }

inline unsigned long long __umul64hi(unsigned long long x, unsigned long long y) {
  return (unsigned long long)((unsigned __int128)x * y >> 64);
}

// The upper or lower word of high:low, shifted by `shift` modulo 32.
inline unsigned __funnelshift_l(unsigned low, unsigned high, unsigned shift) {
  return unsigned(((uint64_t(high) << 32 | low) << (shift & 31)) >> 32);
}

inline unsigned __funnelshift_r(unsigned low, unsigned high, unsigned shift) {
  return unsigned((uint64_t(high) << 32 | low) >> (shift & 31));
}

// ---- conversions --------------------------------------------------------------------------------

namespace simt {

// NaN becomes 0, and what the type cannot hold its nearest value. `rounded` is a whole number.
template <class Integer>
Integer saturated(double rounded) {
  constexpr bool is_signed = Integer(-1) < Integer(0);
  constexpr int value_bits = int(sizeof(Integer)) * 8 - (is_signed ? 1 : 0);
  constexpr Integer most = Integer(~0ull >> (64 - value_bits));
  const double bound = ldexp(1.0, value_bits);
  if (isnan(rounded)) return 0;
  if (rounded >= bound) return most;
  if (rounded < (is_signed ? -bound : 0.0)) return is_signed ? Integer(-most - 1) : Integer(0);
  return Integer(rounded);
}

}  // namespace simt

// rn: to nearest, ties to even; rz: towards zero; rd: down; ru: up.
#define SIMT_TO_INTEGER(NAME, TYPE, FROM)                                       \
  inline TYPE NAME##_rn(FROM x) { return simt::saturated<TYPE>(nearbyint(x)); } \
  inline TYPE NAME##_rz(FROM x) { return simt::saturated<TYPE>(trunc(x)); }     \
  inline TYPE NAME##_rd(FROM x) { return simt::saturated<TYPE>(floor(x)); }     \
  inline TYPE NAME##_ru(FROM x) { return simt::saturated<TYPE>(ceil(x)); }

SIMT_TO_INTEGER(__float2int, int, float)
SIMT_TO_INTEGER(__float2uint, unsigned, float)
SIMT_TO_INTEGER(__float2ll, long long, float)
SIMT_TO_INTEGER(__float2ull, unsigned long long, float)
SIMT_TO_INTEGER(__double2int, int, double)
SIMT_TO_INTEGER(__double2uint, unsigned, double)
SIMT_TO_INTEGER(__double2ll, long long, double)
SIMT_TO_INTEGER(__double2ull, unsigned long long, double)

inline float __int2float_rn(int x) { return float(x); }
inline float __uint2float_rn(unsigned x) { return float(x); }
inline float __ll2float_rn(long long x) { return float(x); }
inline float __ull2float_rn(unsigned long long x) { return float(x); }
inline double __int2double_rn(int x) { return x; }
inline double __uint2double_rn(unsigned x) { return x; }
inline double __ll2double_rn(long long x) { return double(x); }
inline double __ull2double_rn(unsigned long long x) { return double(x); }
inline float __double2float_rn(double x) { return float(x); }

// ---- arithmetic with a stated rounding ----------------------------------------------------------

inline float __fadd_rn(float x, float y) { return x + y; }
inline float __fsub_rn(float x, float y) { return x - y; }
inline float __fmul_rn(float x, float y) { return x * y; }
inline float __fdiv_rn(float x, float y) { return x / y; }
inline float __fmaf_rn(float x, float y, float z) { return fmaf(x, y, z); }
inline float __fsqrt_rn(float x) { return sqrtf(x); }
inline float __frcp_rn(float x) { return 1.0f / x; }

inline double __dadd_rn(double x, double y) { return x + y; }
inline double __dsub_rn(double x, double y) { return x - y; }
inline double __dmul_rn(double x, double y) { return x * y; }
inline double __ddiv_rn(double x, double y) { return x / y; }
inline double __fma_rn(double x, double y, double z) { return fma(x, y, z); }
inline double __dsqrt_rn(double x) { return sqrt(x); }
inline double __drcp_rn(double x) { return 1.0 / x; }

// Into 0 … 1; NaN becomes 0.
inline float __saturatef(float x) { return x > 0.0f ? (x < 1.0f ? x : 1.0f) : 0.0f; }
