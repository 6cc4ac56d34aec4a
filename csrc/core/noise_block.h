// The noise of 64 parameters at a time, the same numbers as philox4x32 and normal_pair one by one.
// Written for compilers with vector extensions: each word in a 64-bit lane, as products of words need.
#pragma once
#include <cstdint>
#include <cstring>

#include "core/normal.h"
#include "core/philox.h"

namespace pf {

constexpr int kBlockCounters = 16;
constexpr int kBlock = 4 * kBlockCounters;

namespace lanes {

// A word of half as many counters as there are lanes, each in the low half of 64 bits.
typedef uint64_t Wide __attribute__((vector_size(4 * kLanes)));

// Product of the low 32 bits of each lane. What stands above them is ignored, so no word is ever masked.
PF_INLINE Wide multiply_low(Wide a, uint32_t constant) {
  const Wide b = Wide{} + constant;
#if defined(__AVX512F__)
  return Wide(_mm512_mul_epu32(__m512i(a), __m512i(b)));
#elif defined(__AVX2__)
  return Wide(_mm256_mul_epu32(__m256i(a), __m256i(b)));
#else
  return (a & 0xFFFFFFFFu) * b;
#endif
}

constexpr int kGroups = kBlockCounters / (kLanes / 2);

// Half a block, where that is a pair of groups or more.
constexpr int kHalfGroups = kGroups >= 4 ? kGroups / 2 : kGroups;

// All counters of a block together: a round's products wait for one another, those of other groups fill the wait.
template <int groups>
PF_INLINE void philox4x32(Wide (&x)[groups], Wide (&y)[groups], Wide (&z)[groups], Wide (&w)[groups],
                          uint32_t key_lo, uint32_t key_hi) {
#pragma GCC unroll 10
  for (int round = 0; round < 10; ++round) {
#pragma GCC unroll 4
    for (int group = 0; group < groups; ++group) {
      const Wide a = multiply_low(x[group], 0xD2511F53u);
      const Wide b = multiply_low(z[group], 0xCD9E8D57u);
      x[group] = (b >> 32) ^ y[group] ^ key_lo;
      y[group] = b;
      z[group] = (a >> 32) ^ w[group] ^ key_hi;
      w[group] = a;
    }
    key_lo += 0x9E3779B9u;
    key_hi += 0xBB67AE85u;
  }
}

// Shuffles stay within quarters of four floats, where they are cheapest. So the counters are dealt out to lanes such
// that after them eight (or sixteen) neighbouring numbers lie side by side.

// Lane 2 L + q of the first of two groups holds counter kQuarters q + L, the second what is 2 kQuarters further.
constexpr int kQuarters = kLanes / 4;
PF_INLINE Wide dealt(uint64_t first) {
  Wide place{};
  for (int lane = 0; lane < kLanes / 2; ++lane) place[lane] = uint64_t(kQuarters * (lane % 2) + lane / 2);
  return place + first;
}

// In each quarter elements i, j, k, l of the eight that a (0 to 3) and b (4 to 7) have there.
template <int i, int j, int k, int l>
PF_INLINE Ints shuffle(Ints a, Ints b) {
#define PF_FROM(element, quarter) ((element) < 4 ? (element) : kLanes + (element)-4) + 4 * (quarter)
#define PF_QUARTER(quarter) PF_FROM(i, quarter), PF_FROM(j, quarter), PF_FROM(k, quarter), PF_FROM(l, quarter)
#if defined(__clang__) && defined(__AVX512F__)
  return __builtin_shufflevector(a, b, PF_QUARTER(0), PF_QUARTER(1), PF_QUARTER(2), PF_QUARTER(3));
#elif defined(__clang__)
  return __builtin_shufflevector(a, b, PF_QUARTER(0), PF_QUARTER(1));
#elif defined(__AVX512F__)
  return __builtin_shuffle(a, b, Ints{PF_QUARTER(0), PF_QUARTER(1), PF_QUARTER(2), PF_QUARTER(3)});
#else
  return __builtin_shuffle(a, b, Ints{PF_QUARTER(0), PF_QUARTER(1)});
#endif
#undef PF_QUARTER
#undef PF_FROM
}

// The low halves of two groups' lanes: counter kQuarters p + L is element p of quarter L.
PF_INLINE Ints narrow(Wide first, Wide second) { return shuffle<0, 2, 4, 6>(Ints(first), Ints(second)); }

// Four numbers of each counter, in the order of counters.
PF_INLINE void store(Floats a, Floats b, Floats c, Floats d, float* to) {
  const Ints ab_low = shuffle<0, 4, 1, 5>(Ints(a), Ints(b)), ab_high = shuffle<2, 6, 3, 7>(Ints(a), Ints(b));
  const Ints cd_low = shuffle<0, 4, 1, 5>(Ints(c), Ints(d)), cd_high = shuffle<2, 6, 3, 7>(Ints(c), Ints(d));
  const Ints rows[4] = {shuffle<0, 1, 4, 5>(ab_low, cd_low), shuffle<2, 3, 6, 7>(ab_low, cd_low),
                        shuffle<0, 1, 4, 5>(ab_high, cd_high), shuffle<2, 3, 6, 7>(ab_high, cd_high)};
  for (int row = 0; row < 4; ++row) std::memcpy(to + kLanes * row, &rows[row], sizeof(Ints));
}

}  // namespace lanes

namespace lanes {

// The words of the counters from `place` on, dealt out to lanes.
template <int groups>
PF_INLINE void block_words(Words4 place, uint64_t seed, Wide (&x)[groups], Wide (&y)[groups], Wide (&z)[groups],
                           Wide (&w)[groups]) {
  for (int group = 0; group < groups; ++group) {
    x[group] = dealt(place.x + uint64_t(group / 2 * kLanes + group % 2 * 2 * kQuarters));
    y[group] = Wide{} + place.y;
    z[group] = Wide{} + place.z;
    w[group] = Wide{} + place.w;
  }
  philox4x32(x, y, z, w, uint32_t(seed), uint32_t(seed >> 32));
}

}  // namespace lanes

// noise[i] = the normal of parameter 4 first + i; first is a multiple of kBlockCounters. Of fewer groups, fewer.
template <int groups = lanes::kGroups>
PF_INLINE void fill_noise_block(uint64_t seed, uint64_t chain, uint64_t step, uint64_t first, float* noise) {
  using namespace lanes;
  Wide x[groups], y[groups], z[groups], w[groups];
  block_words(counter(Stream::noise, chain, step, first), seed, x, y, z, w);
#pragma GCC unroll 2
  for (int group = 0; group < groups; group += 2) {
    Floats a, b, c, d;
    normal_pair(narrow(x[group], x[group + 1]), narrow(y[group], y[group + 1]), a, b);
    normal_pair(narrow(z[group], z[group + 1]), narrow(w[group], w[group + 1]), c, d);
    store(a, b, c, d, noise + group / 2 * 4 * kLanes);
  }
}

// words[4 i + j] = word j of counter first + i.
PF_INLINE void fill_words_block(Stream stream, uint64_t seed, uint64_t chain, uint64_t step, uint64_t first,
                                uint32_t words[kBlock]) {
  using namespace lanes;
  Wide x[kGroups], y[kGroups], z[kGroups], w[kGroups];
  block_words(counter(stream, chain, step, first), seed, x, y, z, w);
  float bits[kBlock];
#pragma GCC unroll 2
  for (int group = 0; group < kGroups; group += 2)
    store(Floats(narrow(x[group], x[group + 1])), Floats(narrow(y[group], y[group + 1])),
          Floats(narrow(z[group], z[group + 1])), Floats(narrow(w[group], w[group + 1])), bits + group / 2 * 4 * kLanes);
  std::memcpy(words, bits, sizeof bits);
}

}  // namespace pf
