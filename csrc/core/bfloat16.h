// bfloat16 is the upper half of a float.
#pragma once
#include <cstdint>

#include "core/normal.h"
#include "core/platform.h"

namespace pf {

PF_INLINE float from_bfloat16(uint16_t half) { return as_float(int32_t(uint32_t(half) << 16)); }

// To the nearest, ties to even; NaN stays NaN.
PF_INLINE uint16_t to_bfloat16(float value) {
  const uint32_t bits = uint32_t(as_int(value));
  const uint32_t rounded = (bits + 0x7FFFu + (bits >> 16 & 1u)) >> 16;
  return uint16_t(value == value ? rounded : 0x7FC0u);
}

}  // namespace pf
