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

// c[i * c_stride + j] = start(i, j / kTileLanes) + sum over k < depth of left(k)[i * left_stride] * b[k * b_stride + j]
// for i < kTileRows and j < vectors * kTileLanes. `start` gives Lanes.
template <int vectors, class Left, class Start>
PF_INLINE void multiply_tile_from(const Start& start, const Left& left, int64_t left_stride, const float* b,
                                  int64_t b_stride, int64_t depth, float* c, int64_t c_stride) {
  using namespace tile;
  Lanes sums[kTileRows][vectors];
#pragma GCC unroll 12
  for (int i = 0; i < kTileRows; ++i)
#pragma GCC unroll 4
    for (int j = 0; j < vectors; ++j) sums[i][j] = start(i, j);
  for (int64_t k = 0; k < depth; ++k) {
    const float* const a = left(k);
    Lanes row[vectors];
#pragma GCC unroll 4
    for (int j = 0; j < vectors; ++j) row[j] = load(b + k * b_stride + j * kTileLanes);
#pragma GCC unroll 12
    for (int i = 0; i < kTileRows; ++i)
#pragma GCC unroll 4
      for (int j = 0; j < vectors; ++j) sums[i][j] = multiply_add(a[i * left_stride], row[j], sums[i][j]);
  }
#pragma GCC unroll 12
  for (int i = 0; i < kTileRows; ++i)
#pragma GCC unroll 4
    for (int j = 0; j < vectors; ++j)
      std::memcpy(c + i * c_stride + j * kTileLanes, &sums[i][j], sizeof(Lanes));
}

// The same from panels made by pack, on what c holds where `add` is true.
template <int vectors = kTileVectors>
PF_INLINE void multiply_tile(const float* a, const float* b, int64_t depth, float* c, int64_t c_stride, bool add) {
  const auto start = [&](int i, int j) { return add ? tile::load(c + i * c_stride + j * kTileLanes) : tile::Lanes{}; };
  multiply_tile_from<vectors>(start, [&](int64_t k) { return a + k * kTileRows; }, 1, b, vectors * kTileLanes, depth, c,
                              c_stride);
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
