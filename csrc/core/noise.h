// The noise of four parameters, as noise_block.h makes it for many: what a counter's four words become.
#pragma once
#include <cstdint>

#include "core/normal.h"
#include "core/philox.h"

namespace pf {

// xi[i] = the normal of parameter 4 index + i.
PF_INLINE void four_normals(uint64_t seed, uint64_t chain, uint64_t step, uint64_t index, float (&xi)[4]) {
  const Words4 words = philox4x32(counter(Stream::noise, chain, step, index), uint32_t(seed), uint32_t(seed >> 32));
  normal_pair(int32_t(words.x), int32_t(words.y), xi[0], xi[1]);
  normal_pair(int32_t(words.z), int32_t(words.w), xi[2], xi[3]);
}

}  // namespace pf
