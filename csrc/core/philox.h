// Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC11): a counter-based generator,
// so that every draw is a pure function of where it is used and nothing has to be stored or handed on.
#pragma once
#include <cstdint>

#include "core/platform.h"

namespace pf {

struct Words4 {
  uint32_t x, y, z, w;
};

PF_INLINE Words4 philox4x32(Words4 counter, uint32_t key_lo, uint32_t key_hi) {
  for (int round = 0; round < 10; ++round) {
    const uint64_t a = uint64_t{0xD2511F53u} * counter.x;
    const uint64_t b = uint64_t{0xCD9E8D57u} * counter.z;
    counter = {uint32_t(b >> 32) ^ counter.y ^ key_lo, uint32_t(b), uint32_t(a >> 32) ^ counter.w ^ key_hi, uint32_t(a)};
    key_lo += 0x9E3779B9u;
    key_hi += 0xBB67AE85u;
  }
  return counter;
}

// What a counter is used for: two uses never share one.
enum class Stream : uint32_t { noise = 0, minibatch = 1, observable = 2, data = 3 };

// Where a draw is used. Index counts blocks of four numbers. Bits past the 32nd of index, step and chain go to the
// last word, 8 bits each, beside the stream: 2^40 of each before any two places meet.
PF_INLINE Words4 counter(Stream stream, uint64_t chain, uint64_t step, uint64_t index) {
  const uint32_t high = uint32_t(stream) | uint32_t(index >> 32 & 0xFF) << 8 | uint32_t(step >> 32 & 0xFF) << 16 |
                        uint32_t(chain >> 32 & 0xFF) << 24;
  return {uint32_t(index), uint32_t(step), uint32_t(chain), high};
}

}  // namespace pf
