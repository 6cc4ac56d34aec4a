// Standard normals from random words by Box-Muller, in float arithmetic that is the same on every machine:
// only correctly rounded operations (add, multiply, fma, square root, int -> float) in a fixed order.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>

#include "core/philox.h"
#include "core/platform.h"

namespace pf {

// A float whose bits are `bits`, and back.
PF_INLINE float as_float(int32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}
PF_INLINE int32_t as_int(float value) {
  int32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

// Natural logarithm of a positive, normal float.
PF_INLINE float log(float value) {
  // value = 2^exponent * (1 + f) with 1 + f in [sqrt(1/2), sqrt(2)).
  const int32_t bits = as_int(value) - 0x3F3504F3;
  const int32_t exponent = bits >> 23;
  const float f = as_float((bits & 0x007FFFFF) + 0x3F3504F3) - 1.0f;
  // log(1 + f) = f - f^2/2 + f^3 p(f), p minimax in relative error.
  float p = 0.06746647506952286f;
  p = fma(p, f, -0.11675654351711273f);
  p = fma(p, f, 0.11888160556554794f);
  p = fma(p, f, -0.1240558847784996f);
  p = fma(p, f, 0.14219552278518677f);
  p = fma(p, f, -0.1666799634695053f);
  p = fma(p, f, 0.2000211924314499f);
  p = fma(p, f, -0.25000008940696716f);
  p = fma(p, f, 0.3333331346511841f);
  const float square = f * f;
  const float tail = fma(p, f * square, -0.5f * square);
  const float e = float(exponent);
  // log(2) in two parts; the first has so few bits that its product with e is exact.
  return fma(e, 0.693359375f, f + fma(e, -2.12194440e-4f, tail));
}

// sin(pi t) and cos(pi t) for t in [-1, 1].
PF_INLINE void sincospi(float t, float& sine, float& cosine) {
  // Adding 1.5 * 2^23 rounds 2t to the nearest integer in the low bits of the sum.
  const float shifted = fma(2.0f, t, 12582912.0f);
  const int32_t quarter = as_int(shifted);
  const float s = fma(-0.5f, shifted - 12582912.0f, t);
  const float square = s * s;
  float sine_tail = fma(-0.5894187688827515f, square, 2.549805164337158f);
  sine_tail = fma(sine_tail, square, -5.167708873748779f) * square;
  const float sine_s = fma(s, 3.1415927410125732f, fma(s, sine_tail, s * -8.742278e-8f));
  float cosine_tail = fma(0.2312864363193512f, square, -1.335036277770996f);
  cosine_tail = fma(cosine_tail, square, 4.058706760406494f);
  cosine_tail = fma(cosine_tail, square, -4.934802055358887f);
  const float cosine_s = fma(cosine_tail, square, 1.0f);
  const bool odd = quarter & 1;
  const int32_t sine_bits = as_int(odd ? cosine_s : sine_s) ^ int32_t(uint32_t(quarter & 2) << 30);
  const int32_t cosine_bits = as_int(odd ? sine_s : cosine_s) ^ int32_t(uint32_t((quarter + 1) & 2) << 30);
  sine = as_float(sine_bits);
  cosine = as_float(cosine_bits);
}

// Two independent standard normals from two words. The radius uses 31 bits of the first, so tails reach 6.66.
PF_INLINE void normal_pair(uint32_t radius_word, uint32_t angle_word, float& first, float& second) {
  const float uniform = fma(float(int32_t(radius_word >> 1)), 0x1p-31f, 0x1p-32f);  // in (0, 1]
  const float radius = std::sqrt(-2.0f * log(uniform));
  float sine, cosine;
  sincospi(float(int32_t(angle_word)) * 0x1p-31f, sine, cosine);
  first = radius * cosine;
  second = radius * sine;
}

}  // namespace pf
