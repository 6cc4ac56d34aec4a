// Standard normals from random words by Box-Muller, in float arithmetic that is the same on every machine:
// only correctly rounded operations (add, multiply, fma, square root, int -> float) in a fixed order.
#pragma once
#include <cstdint>

#include "core/lanes.h"
#include "core/platform.h"

namespace pf {

// Float is float, or several side by side; Int the integers of its bits.

// -2 log(2^-scale value) for a positive, normal value: Box-Muller's squared radius. All in units of -2, which is exact
// and one multiplication less than log itself.
template <int scale, class Float>
PF_INLINE Float minus_two_log(Float value) {
  // value = 2^(exponent + scale) * (1 + f) with 1 + f in [sqrt(1/2), sqrt(2)).
  const auto bits = as_int(value) - (0x3F3504F3 + (scale << 23));
  const auto exponent = bits >> 23;
  const Float f = as_float((bits & 0x007FFFFF) + 0x3F3504F3) - 1.0f;
  // -2 log(1 + f) = -2 f + f^2 - f^3 p(f), -p/2 minimax in relative error.
  Float p = fma(Float{} - 0.13493295013904572f, f, Float{} + 0.23351308703422546f);
  p = fma(p, f, Float{} - 0.23776321113109589f);
  p = fma(p, f, Float{} + 0.2481117695569992f);
  p = fma(p, f, Float{} - 0.28439104557037354f);
  p = fma(p, f, Float{} + 0.3333599269390106f);
  p = fma(p, f, Float{} - 0.4000423848628998f);
  p = fma(p, f, Float{} + 0.50000017881393433f);
  p = fma(p, f, Float{} - 0.6666662693023682f);
  const Float square = f * f;
  const Float tail = fma(p, f * square, square);
  const Float e = to_float(exponent);
  // log(2) in two parts; the first has so few bits that its product with e is exact.
  return fma(e, Float{} - 1.38671875f, fma(Float{} - 2.0f, f, fma(e, Float{} + 4.24388880e-4f, tail)));
}

// Natural logarithm of a positive, normal float.
template <class Float>
PF_INLINE Float log(Float value) {
  return -0.5f * minus_two_log<0>(value);
}

// sin(pi t) and cos(pi t) for t in [-1, 1].
template <class Float>
PF_INLINE void sincospi(Float t, Float& sine, Float& cosine) {
  // Adding 1.5 * 2^23 rounds 2t to the nearest integer in the low bits of the sum.
  const Float shifted = fma(Float{} + 2.0f, t, Float{} + 12582912.0f);
  const auto quarter = as_int(shifted);
  const Float s = fma(Float{} - 0.5f, shifted - 12582912.0f, t);
  const Float square = s * s;
  Float sine_tail = fma(Float{} - 0.5894187688827515f, square, Float{} + 2.549805164337158f);
  sine_tail = fma(sine_tail, square, Float{} - 5.167708873748779f) * square;
  const Float sine_s = fma(s, Float{} + 3.1415927410125732f, fma(s, sine_tail, s * -8.742278e-8f));
  Float cosine_tail = fma(Float{} + 0.2312864363193512f, square, Float{} - 1.335036277770996f);
  cosine_tail = fma(cosine_tail, square, Float{} + 4.058706760406494f);
  cosine_tail = fma(cosine_tail, square, Float{} - 4.934802055358887f);
  const Float cosine_s = fma(cosine_tail, square, Float{} + 1.0f);
  const auto odd = shift_left(quarter, 31);
  sine = as_float(as_int(if_negative(odd, cosine_s, sine_s)) ^ shift_left(quarter & 2, 30));
  cosine = as_float(as_int(if_negative(odd, sine_s, cosine_s)) ^ shift_left((quarter + 1) & 2, 30));
}

// Two independent standard normals from two words. The radius uses 31 bits of the first, so tails reach 6.66.
template <class Int, class Float>
PF_INLINE void normal_pair(Int radius_word, Int angle_word, Float& first, Float& second) {
  // The uniform number is 2^-31 (word / 2 + 1 / 2), in (0, 1].
  const Float radius = square_root(minus_two_log<31>(to_float(shift_right(radius_word, 1)) + 0.5f));
  Float sine, cosine;
  sincospi(to_float(angle_word) * 0x1p-31f, sine, cosine);
  first = radius * cosine;
  second = radius * sine;
}

}  // namespace pf
