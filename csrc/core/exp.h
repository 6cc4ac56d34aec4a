// The exponential in float arithmetic that is the same on every machine; without a branch, so that loops vectorise.
#pragma once
#include <cstdint>

#include "core/normal.h"
#include "core/platform.h"

namespace pf {

// e^value for value < 88; 0 where that is below 2^-126.5; NaN for NaN.
PF_INLINE float exp(float value) {
  // Below -88 nothing is left to tell apart. A NaN compares false, and stays.
  const float x = -88.0f > value ? -88.0f : value;
  // x = n log(2) + r: adding 1.5 * 2^23 rounds to the nearest integer, in the low bits of the sum.
  const float shifted = fma(x, 1.44269502f, 12582912.0f);
  const float n = shifted - 12582912.0f;
  // log(2) in two parts; the first has so few bits that its product with n is exact.
  const float r = fma(n, -1.42860677e-6f, fma(n, -0.693145752f, x));
  // e^r = 1 + r + r^2 p(r), p minimax in relative error over |r| <= log(2) / 2.
  float p = 0.0013820689637213945f;
  p = fma(p, r, 0.008368675597012043f);
  p = fma(p, r, 0.04166826605796814f);
  p = fma(p, r, 0.1666652113199234f);
  p = fma(p, r, 0.4999999403953552f);
  p = fma(p, r, 1.0f);
  p = fma(p, r, 1.0f);
  // 2^n by its bits; those of n = -127 are the bits of 0.
  return p * as_float(int32_t((uint32_t(as_int(shifted)) << 23) + 0x3F800000u));
}

}  // namespace pf
