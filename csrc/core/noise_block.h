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

namespace pf {

constexpr int kBlockCounters = 16;
constexpr int kBlock = 4 * kBlockCounters;

namespace lanes {

typedef uint64_t Words __attribute__((vector_size(32)));
typedef uint32_t Halves __attribute__((vector_size(16)));
typedef float Floats __attribute__((vector_size(16)));

// Product of the low 32 bits of each lane. What stands above them is ignored, so no word is ever masked.
PF_INLINE Words multiply_low(Words a, uint32_t constant) {
  const Words b = Words{} + constant;
#if defined(__AVX2__)
  return Words(_mm256_mul_epu32(__m256i(a), __m256i(b)));
#else
  return (a & 0xFFFFFFFFu) * b;
#endif
}

PF_INLINE void philox4x32(Words& x, Words& y, Words& z, Words& w, uint32_t key_lo, uint32_t key_hi) {
  for (int round = 0; round < 10; ++round) {
    const Words a = multiply_low(x, 0xD2511F53u);
    const Words b = multiply_low(z, 0xCD9E8D57u);
    x = (b >> 32) ^ y ^ key_lo;
    y = b;
    z = (a >> 32) ^ w ^ key_hi;
    w = a;
    key_lo += 0x9E3779B9u;
    key_hi += 0xBB67AE85u;
  }
}

PF_INLINE void store(Words words, uint32_t* to) {
  const Halves low = __builtin_convertvector(words, Halves);
  std::memcpy(to, &low, sizeof low);
}

PF_INLINE Floats load(const float* from) {
  Floats value;
  std::memcpy(&value, from, sizeof value);
  return value;
}

// to[4 i + j] = from[j][i] for i, j < 4.
PF_INLINE void store_transposed(Floats a, Floats b, Floats c, Floats d, float* to) {
  const Floats ac_low = __builtin_shufflevector(a, c, 0, 4, 1, 5), ac_high = __builtin_shufflevector(a, c, 2, 6, 3, 7);
  const Floats bd_low = __builtin_shufflevector(b, d, 0, 4, 1, 5), bd_high = __builtin_shufflevector(b, d, 2, 6, 3, 7);
  const Floats rows[4] = {__builtin_shufflevector(ac_low, bd_low, 0, 4, 1, 5),
                          __builtin_shufflevector(ac_low, bd_low, 2, 6, 3, 7),
                          __builtin_shufflevector(ac_high, bd_high, 0, 4, 1, 5),
                          __builtin_shufflevector(ac_high, bd_high, 2, 6, 3, 7)};
  std::memcpy(to, rows, sizeof rows);
}

}  // namespace lanes

// noise[i] = the normal of parameter 4 first + i; first is a multiple of kBlockCounters.
PF_INLINE void fill_noise_block(uint64_t seed, uint64_t chain, uint64_t step, uint64_t first, float noise[kBlock]) {
  uint32_t words[4][kBlockCounters];
  const Words4 place = counter(Stream::noise, chain, step, first);
  for (int i = 0; i < kBlockCounters; i += 4) {
    lanes::Words x = lanes::Words{0, 1, 2, 3} + (place.x + uint64_t(i));
    lanes::Words y = lanes::Words{} + place.y, z = lanes::Words{} + place.z, w = lanes::Words{} + place.w;
    lanes::philox4x32(x, y, z, w, uint32_t(seed), uint32_t(seed >> 32));
    lanes::store(x, words[0] + i);
    lanes::store(y, words[1] + i);
    lanes::store(z, words[2] + i);
    lanes::store(w, words[3] + i);
  }
  float normals[4][kBlockCounters];
  for (int pair = 0; pair < 4; pair += 2)
    for (int i = 0; i < kBlockCounters; ++i)
      normal_pair(words[pair][i], words[pair + 1][i], normals[pair][i], normals[pair + 1][i]);
  for (int i = 0; i < kBlockCounters; i += 4)
    lanes::store_transposed(lanes::load(normals[0] + i), lanes::load(normals[1] + i), lanes::load(normals[2] + i),
                            lanes::load(normals[3] + i), noise + 4 * i);
}

}  // namespace pf
