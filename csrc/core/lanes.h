// Several floats side by side, and the few operations on them that the arithmetic of this library is made of. Each has
// a namesake for one float, so that a function written once serves both. For compilers with vectors (GCC, Clang).
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>
#include <utility>

#include "core/platform.h"

#if !defined(__CUDACC__)
#if defined(__AVX2__)
#include <immintrin.h>
#elif defined(__ARM_NEON)
#include <arm_neon.h>
#endif
#endif

namespace pf {

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
PF_INLINE float to_float(int32_t value) { return float(value); }
PF_INLINE float square_root(float value) { return std::sqrt(value); }
PF_INLINE float greater(float a, float b) { return a > b ? a : b; }  // b where either is NaN
PF_INLINE float if_negative(int32_t sign, float then, float otherwise) { return sign < 0 ? then : otherwise; }
PF_INLINE int32_t shift_right(int32_t value, int by) { return int32_t(uint32_t(value) >> by); }
PF_INLINE int32_t shift_left(int32_t value, int by) { return int32_t(uint32_t(value) << by); }

#if !defined(__CUDACC__)

#if defined(__AVX512F__)
constexpr int kLanes = 16;
#else
constexpr int kLanes = 8;
#endif

typedef float Floats __attribute__((vector_size(4 * kLanes)));
typedef int32_t Ints __attribute__((vector_size(4 * kLanes)));
typedef uint32_t Words __attribute__((vector_size(4 * kLanes)));

PF_INLINE Floats load_lanes(const float* from) {
  Floats value;
  std::memcpy(&value, from, sizeof value);
  return value;
}
PF_INLINE void store_lanes(Floats value, float* to) { std::memcpy(to, &value, sizeof value); }

PF_INLINE Floats as_float(Ints bits) { return Floats(bits); }
PF_INLINE Ints as_int(Floats value) { return Ints(value); }
PF_INLINE Floats to_float(Ints value) { return __builtin_convertvector(value, Floats); }
PF_INLINE Floats if_negative(Ints sign, Floats then, Floats otherwise) { return sign < 0 ? then : otherwise; }
PF_INLINE Ints shift_right(Ints value, int by) { return Ints(Words(value) >> by); }
PF_INLINE Ints shift_left(Ints value, int by) { return Ints(Words(value) << by); }

PF_INLINE Floats fma(Floats a, Floats b, Floats c) {
#if defined(__AVX512F__)
  return Floats(_mm512_fmadd_ps(__m512(a), __m512(b), __m512(c)));
#elif defined(__AVX2__)
  return Floats(_mm256_fmadd_ps(__m256(a), __m256(b), __m256(c)));
#else
  for (int lane = 0; lane < kLanes; ++lane) c[lane] = fma(a[lane], b[lane], c[lane]);
  return c;
#endif
}

template <int by, int... lane>
PF_INLINE Floats rotate_lanes(Floats value, std::integer_sequence<int, lane...>) {
  return __builtin_shufflevector(value, value, (lane + by) % kLanes...);
}
// Lane i of the result is lane i + by.
template <int by>
PF_INLINE Floats rotate_lanes(Floats value) {
  return rotate_lanes<by>(value, std::make_integer_sequence<int, kLanes>());
}

PF_INLINE Floats greater(Floats a, Floats b) {
#if defined(__AVX512F__)
  return Floats(_mm512_max_ps(__m512(a), __m512(b)));
#elif defined(__AVX2__)
  return Floats(_mm256_max_ps(__m256(a), __m256(b)));
#else
  return a > b ? a : b;
#endif
}

PF_INLINE Floats square_root(Floats value) {
#if defined(__AVX512F__)
  return Floats(_mm512_sqrt_ps(__m512(value)));
#elif defined(__AVX2__)
  return Floats(_mm256_sqrt_ps(__m256(value)));
#else
  for (int lane = 0; lane < kLanes; ++lane) value[lane] = std::sqrt(value[lane]);
  return value;
#endif
}

#endif

}  // namespace pf
