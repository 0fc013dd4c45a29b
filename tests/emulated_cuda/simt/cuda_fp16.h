// Half precision: 2 bytes of storage, conversions as IEEE 754 asks (subnormals, ties to even,
// overflow to infinity), and arithmetic by way of float, which for one operation followed by one
// rounding gives the same bits as half arithmetic. NaN becomes the device's: 0x7fff in half,
// 0x7fffffff in float. The conversions are integer arithmetic, the same with every compiler.
//
// Not here: fused and approximate functions (__hfma, hexp, …), atomics, bfloat16.
#pragma once

namespace simt {

// The magnitude 2^exponent * mantissa / 2^52, with 2^52 <= mantissa < 2^53, as bits of a half.
inline unsigned round_to_half(int exponent, unsigned long long mantissa) {
  constexpr int smallest_normal = -14;
  if (exponent > 15) return 0x7c00;
  // A half keeps 10 bits behind the leading one; subnormals lose one more per power of two.
  int dropped_bits = 52 - 10;
  if (exponent < smallest_normal) dropped_bits += smallest_normal - exponent;
  if (dropped_bits > 53) return 0;  // less than half of the smallest subnormal
  const unsigned long long dropped = mantissa & ((1ull << dropped_bits) - 1);
  const unsigned long long tie = 1ull << (dropped_bits - 1);
  // Added, the leading one becomes part of the exponent field; so does a carry of the rounding,
  // up to and into infinity.
  unsigned bits = static_cast<unsigned>(mantissa >> dropped_bits);
  if (exponent > smallest_normal) bits += static_cast<unsigned>(exponent - smallest_normal) << 10;
  return bits + (dropped > tie || (dropped == tie && (bits & 1)));
}

inline unsigned short half_bits(double value) {
  unsigned long long bits;
  __builtin_memcpy(&bits, &value, sizeof bits);
  const unsigned sign = static_cast<unsigned>(bits >> 48) & 0x8000u;
  const int exponent = static_cast<int>(bits >> 52 & 0x7ff);
  const unsigned long long fraction = bits & ((1ull << 52) - 1);
  if (exponent == 0x7ff && fraction != 0) return 0x7fff;
  if (exponent == 0) return static_cast<unsigned short>(sign);
  return static_cast<unsigned short>(sign | round_to_half(exponent - 1023, fraction | 1ull << 52));
}

inline float half_value(unsigned short half) {
  const unsigned sign = (half & 0x8000u) << 16;
  const unsigned exponent = half >> 10 & 0x1f;
  const unsigned fraction = half & 0x3ffu;
  unsigned bits = sign | (exponent + 127 - 15) << 23 | fraction << 13;
  if (exponent == 0x1f) bits = fraction != 0 ? 0x7fffffffu : sign | 0x7f800000u;
  float value;
  __builtin_memcpy(&value, &bits, sizeof value);
  if (exponent != 0) return value;
  const float magnitude = static_cast<float>(fraction) * 0x1p-24f;  // subnormals are multiples
  return sign != 0 ? -magnitude : magnitude;
}

}  // namespace simt

struct __half {
  unsigned short bits;

  __half() = default;
  __half(float value) : bits(simt::half_bits(value)) {}
  __half(double value) : bits(simt::half_bits(value)) {}
  __half(int value) : bits(simt::half_bits(value)) {}
  __half(unsigned value) : bits(simt::half_bits(value)) {}

  operator float() const { return simt::half_value(bits); }

  __half& operator+=(__half other) { return *this = __half(float(*this) + float(other)); }
  __half& operator-=(__half other) { return *this = __half(float(*this) - float(other)); }
  __half& operator*=(__half other) { return *this = __half(float(*this) * float(other)); }
  __half& operator/=(__half other) { return *this = __half(float(*this) / float(other)); }
};

struct alignas(4) __half2 {
  __half x, y;

  __half2() = default;
  __half2(__half low, __half high) : x(low), y(high) {}
};

using half = __half;
using half2 = __half2;

inline float __half2float(__half value) { return value; }
inline __half __float2half(float value) { return value; }
inline __half __float2half_rn(float value) { return value; }
inline __half __double2half(double value) { return value; }
inline unsigned short __half_as_ushort(__half value) { return value.bits; }
inline short __half_as_short(__half value) { return static_cast<short>(value.bits); }

inline __half __ushort_as_half(unsigned short bits) {
  __half value;
  value.bits = bits;
  return value;
}

inline __half __short_as_half(short bits) {
  return __ushort_as_half(static_cast<unsigned short>(bits));
}

inline __half2 make_half2(__half low, __half high) { return {low, high}; }
inline __half2 __halves2half2(__half low, __half high) { return {low, high}; }
inline __half2 __half2half2(__half value) { return {value, value}; }
inline __half2 __float2half2_rn(float value) { return {value, value}; }
inline __half2 __floats2half2_rn(float low, float high) { return {low, high}; }
inline __half2 __float22half2_rn(float2 values) { return {values.x, values.y}; }
inline float2 __half22float2(__half2 values) { return {values.x, values.y}; }
inline __half __low2half(__half2 values) { return values.x; }
inline __half __high2half(__half2 values) { return values.y; }
inline float __low2float(__half2 values) { return values.x; }
inline float __high2float(__half2 values) { return values.y; }

inline __half operator+(__half left, __half right) { return left += right; }
inline __half operator-(__half left, __half right) { return left -= right; }
inline __half operator*(__half left, __half right) { return left *= right; }
inline __half operator/(__half left, __half right) { return left /= right; }
inline __half operator-(__half value) { return -float(value); }

inline bool operator==(__half left, __half right) { return float(left) == float(right); }
inline bool operator!=(__half left, __half right) { return float(left) != float(right); }
inline bool operator<(__half left, __half right) { return float(left) < float(right); }
inline bool operator>(__half left, __half right) { return float(left) > float(right); }
inline bool operator<=(__half left, __half right) { return float(left) <= float(right); }
inline bool operator>=(__half left, __half right) { return float(left) >= float(right); }

inline __half __hadd(__half left, __half right) { return left + right; }
inline __half __hsub(__half left, __half right) { return left - right; }
inline __half __hmul(__half left, __half right) { return left * right; }
inline __half __hdiv(__half left, __half right) { return left / right; }
inline __half __hneg(__half value) { return -value; }
inline bool __heq(__half left, __half right) { return left == right; }
inline bool __hlt(__half left, __half right) { return left < right; }
inline bool __hgt(__half left, __half right) { return left > right; }
inline bool __hisnan(__half value) { return (value.bits & 0x7fff) > 0x7c00; }

inline __half2 __hadd2(__half2 left, __half2 right) { return {left.x + right.x, left.y + right.y}; }
inline __half2 __hmul2(__half2 left, __half2 right) { return {left.x * right.x, left.y * right.y}; }
