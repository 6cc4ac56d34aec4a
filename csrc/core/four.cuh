// Four neighbouring numbers of a row, moved by one access where their address allows it.
#pragma once
#include <cstdint>

#include "core/bfloat16.h"

namespace pf::cuda {

inline __device__ bool is_aligned(const void* address, uintptr_t bytes) { return uintptr_t(address) % bytes == 0; }

inline __device__ void load_four_aligned(const float* from, float (&to)[4]) {
  const float4 four = *reinterpret_cast<const float4*>(from);
  to[0] = four.x, to[1] = four.y, to[2] = four.z, to[3] = four.w;
}

// bfloat16, widened; so below.
inline __device__ void load_four_aligned(const uint16_t* from, float (&to)[4]) {
  const uint2 four = *reinterpret_cast<const uint2*>(from);
  to[0] = from_bfloat16(uint16_t(four.x)), to[1] = from_bfloat16(uint16_t(four.x >> 16));
  to[2] = from_bfloat16(uint16_t(four.y)), to[3] = from_bfloat16(uint16_t(four.y >> 16));
}

inline __device__ float widen(float number) { return number; }
inline __device__ float widen(uint16_t number) { return from_bfloat16(number); }

// The first `count` of them; the others are 0.
template <class Number>
__device__ void load_some_of_four(const Number* from, int count, float (&to)[4]) {
#pragma unroll
  for (int i = 0; i < 4; ++i) to[i] = i < count ? widen(from[i]) : 0.0f;
}

template <class Number>
__device__ void load_four(const Number* from, int count, float (&to)[4]) {
  if (count >= 4 && is_aligned(from, 4 * sizeof(Number)))
    load_four_aligned(from, to);
  else
    load_some_of_four(from, count, to);
}

inline __device__ void store_four_aligned(const float (&from)[4], float* to) {
  *reinterpret_cast<float4*>(to) = make_float4(from[0], from[1], from[2], from[3]);
}

inline __device__ void store_four(const float (&from)[4], int count, float* to) {
  if (count >= 4 && is_aligned(to, sizeof(float4))) {
    store_four_aligned(from, to);
  } else {
#pragma unroll
    for (int i = 0; i < 4; ++i)
      if (i < count) to[i] = from[i];
  }
}

// Narrowed to bfloat16.
inline __device__ void store_four(const float (&from)[4], int count, uint16_t* to) {
  if (count >= 4 && is_aligned(to, sizeof(uint2))) {
    *reinterpret_cast<uint2*>(to) =
        make_uint2(uint32_t(to_bfloat16(from[0])) | uint32_t(to_bfloat16(from[1])) << 16,
                   uint32_t(to_bfloat16(from[2])) | uint32_t(to_bfloat16(from[3])) << 16);
  } else {
#pragma unroll
    for (int i = 0; i < 4; ++i)
      if (i < count) to[i] = to_bfloat16(from[i]);
  }
}

}  // namespace pf::cuda
