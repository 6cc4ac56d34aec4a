// The noise of 64 parameters at a time, the same numbers as philox4x32 and normal_pair one by one.
// Written for compilers with vector extensions (GCC, Clang): four counters side by side, each word in a 64-bit lane.
#pragma once
#include <cstdint>
#include <cstring>

#if defined(__AVX2__)
#include <immintrin.h>
#endif

#include "core/normal.h"
#include "core/philox.h"

#if defined(__clang__)
#define PF_SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define PF_SHUFFLE(a, b, ...) __builtin_shuffle(a, b, Mask{__VA_ARGS__})
#endif

namespace pf {

constexpr int kBlockCounters = 16;
constexpr int kBlock = 4 * kBlockCounters;

namespace lanes {

typedef int32_t Mask __attribute__((vector_size(32)));
typedef uint64_t Words __attribute__((vector_size(32)));
typedef uint32_t Halves __attribute__((vector_size(32)));
typedef float Floats __attribute__((vector_size(32)));

// Product of the low 32 bits of each lane. What stands above them is ignored, so no word is ever masked.
PF_INLINE Words multiply_low(Words a, uint32_t constant) {
  const Words b = Words{} + constant;
#if defined(__AVX2__)
  return Words(_mm256_mul_epu32(__m256i(a), __m256i(b)));
#else
  return (a & 0xFFFFFFFFu) * b;
#endif
}

constexpr int kGroups = kBlockCounters / 4;

// All counters of a block together: a round's products wait for one another, those of other groups fill the wait.
PF_INLINE void philox4x32(Words (&x)[kGroups], Words (&y)[kGroups], Words (&z)[kGroups], Words (&w)[kGroups],
                          uint32_t key_lo, uint32_t key_hi) {
#pragma GCC unroll 10
  for (int round = 0; round < 10; ++round) {
#pragma GCC unroll 4
    for (int group = 0; group < kGroups; ++group) {
      const Words a = multiply_low(x[group], 0xD2511F53u);
      const Words b = multiply_low(z[group], 0xCD9E8D57u);
      x[group] = (b >> 32) ^ y[group] ^ key_lo;
      y[group] = b;
      z[group] = (a >> 32) ^ w[group] ^ key_hi;
      w[group] = a;
    }
    key_lo += 0x9E3779B9u;
    key_hi += 0xBB67AE85u;
  }
}

// Stores and loads below are as wide as each other: a load that spans two stores waits for both.

// The low halves of eight lanes.
PF_INLINE void store(Words first, Words second, uint32_t* to) {
  const Halves low = PF_SHUFFLE(Halves(first), Halves(second), 0, 2, 4, 6, 8, 10, 12, 14);
  std::memcpy(to, &low, sizeof low);
}

PF_INLINE Floats load(const float* from) {
  Floats value;
  std::memcpy(&value, from, sizeof value);
  return value;
}

// to[4 i + j] = from[j][i] for i < 8, j < 4.
PF_INLINE void store_transposed(Floats a, Floats b, Floats c, Floats d, float* to) {
  const Floats ab_low = PF_SHUFFLE(a, b, 0, 8, 1, 9, 4, 12, 5, 13);
  const Floats ab_high = PF_SHUFFLE(a, b, 2, 10, 3, 11, 6, 14, 7, 15);
  const Floats cd_low = PF_SHUFFLE(c, d, 0, 8, 1, 9, 4, 12, 5, 13);
  const Floats cd_high = PF_SHUFFLE(c, d, 2, 10, 3, 11, 6, 14, 7, 15);
  const Floats i04 = PF_SHUFFLE(ab_low, cd_low, 0, 1, 8, 9, 4, 5, 12, 13);
  const Floats i15 = PF_SHUFFLE(ab_low, cd_low, 2, 3, 10, 11, 6, 7, 14, 15);
  const Floats i26 = PF_SHUFFLE(ab_high, cd_high, 0, 1, 8, 9, 4, 5, 12, 13);
  const Floats i37 = PF_SHUFFLE(ab_high, cd_high, 2, 3, 10, 11, 6, 7, 14, 15);
  const Floats rows[4] = {PF_SHUFFLE(i04, i15, 0, 1, 2, 3, 8, 9, 10, 11),
                          PF_SHUFFLE(i26, i37, 0, 1, 2, 3, 8, 9, 10, 11),
                          PF_SHUFFLE(i04, i15, 4, 5, 6, 7, 12, 13, 14, 15),
                          PF_SHUFFLE(i26, i37, 4, 5, 6, 7, 12, 13, 14, 15)};
  for (int row = 0; row < 4; ++row) std::memcpy(to + 8 * row, &rows[row], sizeof(Floats));
}

}  // namespace lanes

// noise[i] = the normal of parameter 4 first + i; first is a multiple of kBlockCounters.
PF_INLINE void fill_noise_block(uint64_t seed, uint64_t chain, uint64_t step, uint64_t first, float noise[kBlock]) {
  const Words4 place = counter(Stream::noise, chain, step, first);
  lanes::Words x[lanes::kGroups], y[lanes::kGroups], z[lanes::kGroups], w[lanes::kGroups];
  for (int group = 0; group < lanes::kGroups; ++group) {
    x[group] = lanes::Words{0, 1, 2, 3} + (place.x + uint64_t(4 * group));
    y[group] = lanes::Words{} + place.y;
    z[group] = lanes::Words{} + place.z;
    w[group] = lanes::Words{} + place.w;
  }
  lanes::philox4x32(x, y, z, w, uint32_t(seed), uint32_t(seed >> 32));
  uint32_t words[4][kBlockCounters];
  for (int group = 0; group < lanes::kGroups; group += 2) {
    lanes::store(x[group], x[group + 1], words[0] + 4 * group);
    lanes::store(y[group], y[group + 1], words[1] + 4 * group);
    lanes::store(z[group], z[group + 1], words[2] + 4 * group);
    lanes::store(w[group], w[group + 1], words[3] + 4 * group);
  }
  float normals[4][kBlockCounters];
  for (int pair = 0; pair < 4; pair += 2)
    for (int i = 0; i < kBlockCounters; ++i)
      normal_pair(words[pair][i], words[pair + 1][i], normals[pair][i], normals[pair + 1][i]);
  for (int i = 0; i < kBlockCounters; i += 8)
    lanes::store_transposed(lanes::load(normals[0] + i), lanes::load(normals[1] + i), lanes::load(normals[2] + i),
                            lanes::load(normals[3] + i), noise + 4 * i);
}

}  // namespace pf

#undef PF_SHUFFLE
