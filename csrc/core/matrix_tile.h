// The inner loop of every matrix product: one tile of the result, held in registers while the depth goes by.
// Each element is the sum over k, in order, with one fma a term: the same bits on every ISA, whatever its tile.
#pragma once
#include <cstdint>
#include <cstring>

#include "core/platform.h"

#if defined(__AVX2__)
#include <immintrin.h>
#elif defined(__ARM_NEON)
#include <arm_neon.h>
#endif

namespace pf {

#if defined(__AVX512F__)
constexpr int kTileLanes = 16, kTileRows = 12, kTileVectors = 2;
#elif defined(__AVX2__)
constexpr int kTileLanes = 8, kTileRows = 6, kTileVectors = 2;
#else
constexpr int kTileLanes = 4, kTileRows = 6, kTileVectors = 2;
#endif
constexpr int kTileColumns = kTileLanes * kTileVectors;

namespace tile {

typedef float Lanes __attribute__((vector_size(4 * kTileLanes)));

PF_INLINE Lanes load(const float* from) {
  Lanes value;
  std::memcpy(&value, from, sizeof value);
  return value;
}

PF_INLINE Lanes multiply_add(float a, Lanes b, Lanes c) {
#if defined(__AVX512F__)
  return Lanes(_mm512_fmadd_ps(_mm512_set1_ps(a), __m512(b), __m512(c)));
#elif defined(__AVX2__)
  return Lanes(_mm256_fmadd_ps(_mm256_set1_ps(a), __m256(b), __m256(c)));
#elif defined(__ARM_NEON)
  return Lanes(vfmaq_n_f32(float32x4_t(c), float32x4_t(b), a));
#else
  for (int lane = 0; lane < kTileLanes; ++lane) c[lane] = fma(a, b[lane], c[lane]);
  return c;
#endif
}

}  // namespace tile

// c[i * c_stride + j] = sum over k < depth of a[k * kTileRows + i] * b[k * kTileColumns + j], added to what c holds
// where `add` is true. a and b are panels made by pack.
PF_INLINE void multiply_tile(const float* a, const float* b, int64_t depth, float* c, int64_t c_stride, bool add) {
  using namespace tile;
  Lanes sums[kTileRows][kTileVectors];
#pragma GCC unroll 12
  for (int i = 0; i < kTileRows; ++i)
#pragma GCC unroll 2
    for (int j = 0; j < kTileVectors; ++j) sums[i][j] = add ? load(c + i * c_stride + j * kTileLanes) : Lanes{};
  for (int64_t k = 0; k < depth; ++k) {
    Lanes row[kTileVectors];
#pragma GCC unroll 2
    for (int j = 0; j < kTileVectors; ++j) row[j] = load(b + k * kTileColumns + j * kTileLanes);
#pragma GCC unroll 12
    for (int i = 0; i < kTileRows; ++i)
#pragma GCC unroll 2
      for (int j = 0; j < kTileVectors; ++j) sums[i][j] = multiply_add(a[k * kTileRows + i], row[j], sums[i][j]);
  }
#pragma GCC unroll 12
  for (int i = 0; i < kTileRows; ++i)
#pragma GCC unroll 2
    for (int j = 0; j < kTileVectors; ++j)
      std::memcpy(c + i * c_stride + j * kTileLanes, &sums[i][j], sizeof(Lanes));
}

// One panel: panel[k * size + i] = from[i * row_stride + k * column_stride] for i < count, 0 for count <= i < size.
template <int size>
PF_INLINE void pack(const float* from, int64_t row_stride, int64_t column_stride, int64_t count, int64_t depth,
                    float* panel) {
  for (int64_t k = 0; k < depth; ++k)
    for (int i = 0; i < size; ++i)
      panel[k * size + i] = i < count ? from[i * row_stride + k * column_stride] : 0.0f;
}

}  // namespace pf
