// The exponential in float arithmetic that is the same on every machine; without a branch, so that loops vectorise.
#pragma once
#include <cstdint>

#include "core/normal.h"
#include "core/platform.h"

namespace pf {

// e^value of each, for value < 88; 0 where that is below 2^-126.5; NaN for NaN. Float is float, or several side by side.
// Step by step all of them, as each step waits for the last.
template <int count, class Float>
PF_INLINE void exponentiate(Float (&values)[count]) {
  const auto each = [](const auto& step) {
    PF_UNROLL
    for (int i = 0; i < count; ++i) step(i);
  };
  Float shifted[count], r[count], p[count];
  // Below -88 nothing is left to tell apart. A NaN stays.
  each([&](int i) { values[i] = greater(Float{} - 88.0f, values[i]); });
  // x = n log(2) + r: adding 1.5 * 2^23 rounds to the nearest integer, in the low bits of the sum.
  each([&](int i) { shifted[i] = fma(values[i], Float{} + 1.44269502f, Float{} + 12582912.0f); });
  each([&](int i) { r[i] = shifted[i] - 12582912.0f; });
  // log(2) in two parts; the first has so few bits that its product with n is exact.
  each([&](int i) { values[i] = fma(r[i], Float{} - 0.693145752f, values[i]); });
  each([&](int i) { r[i] = fma(r[i], Float{} - 1.42860677e-6f, values[i]); });
  // e^r = 1 + r + r^2 p(r), p minimax in relative error over |r| <= log(2) / 2.
  each([&](int i) { p[i] = fma(Float{} + 0.0013820689637213945f, r[i], Float{} + 0.008368675597012043f); });
  each([&](int i) { p[i] = fma(p[i], r[i], Float{} + 0.04166826605796814f); });
  each([&](int i) { p[i] = fma(p[i], r[i], Float{} + 0.1666652113199234f); });
  each([&](int i) { p[i] = fma(p[i], r[i], Float{} + 0.4999999403953552f); });
  each([&](int i) { p[i] = fma(p[i], r[i], Float{} + 1.0f); });
  each([&](int i) { p[i] = fma(p[i], r[i], Float{} + 1.0f); });
  // 2^n by its bits; those of n = -127 are the bits of 0.
  each([&](int i) { values[i] = p[i] * as_float(shift_left(as_int(shifted[i]) + 127, 23)); });
}

template <class Float>
PF_INLINE Float exp(Float value) {
  Float values[1] = {value};
  exponentiate(values);
  return values[0];
}

}  // namespace pf
