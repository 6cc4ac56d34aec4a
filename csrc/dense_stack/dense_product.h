// Products of small matrices that lie in cache, and how such matrices are turned.
#pragma once
#include <algorithm>
#include <cstdint>

#include "core/matrix_tile.h"

namespace pf::PF_ISA {

inline int64_t round_up(int64_t value, int64_t to) { return (value + to - 1) / to * to; }

// Element (i, k) is at[i * row + k * column].
struct Left {
  const float* at;
  int64_t row, column;

  PF_INLINE float element(int64_t i, int64_t k) const { return at[i * row + k * column]; }
  Left from_row(int64_t i) const { return {at + i * row, row, column}; }
};

// Row k is at + k * stride.
struct Right {
  const float* at;
  int64_t stride;

  PF_INLINE const float* row(int64_t k) const { return at + k * stride; }
  Right from_column(int64_t j) const { return {at + j, stride}; }
  Right from_row(int64_t k) const { return {row(k), stride}; }
};

// Rows of a table that need not lie side by side.
struct Gathered {
  const float* at;
  const int64_t* rows;
  int64_t stride;

  PF_INLINE const float* row(int64_t k) const { return at + rows[k] * stride; }
  Gathered from_column(int64_t j) const { return {at + j, rows, stride}; }
  Gathered from_row(int64_t k) const { return {at, rows + k, stride}; }
};

// The same as a left matrix: each row's numbers are a column.
struct GatheredColumns {
  Gathered from;

  PF_INLINE float element(int64_t i, int64_t k) const { return from.row(k)[i]; }
  GatheredColumns from_row(int64_t i) const { return {from.from_column(i)}; }
};

// Sums in as many parts, of every parts-th term each, that are added up at the end: a tile of few sums would wait for
// its own fma otherwise.
template <int rows, int vectors, int parts, class L, class R>
PF_INLINE void small_tile(L left, int64_t depth, R right, const float* bias, float* to, int64_t to_stride) {
  using namespace tile;
  Lanes sums[parts][rows][vectors] = {};
  if (bias)
    for (int i = 0; i < rows; ++i)
      for (int j = 0; j < vectors; ++j) sums[0][i][j] = Lanes{} + bias[i];
  const auto add = [&](int part, int64_t k) {
    Lanes row[vectors];
#pragma GCC unroll 4
    for (int j = 0; j < vectors; ++j) row[j] = load(right.row(k) + j * kTileLanes);
#pragma GCC unroll 6
    for (int i = 0; i < rows; ++i)
#pragma GCC unroll 4
      for (int j = 0; j < vectors; ++j)
        sums[part][i][j] = multiply_add(left.element(i, k), row[j], sums[part][i][j]);
  };
  int64_t k = 0;
  for (; k + parts <= depth; k += parts)
#pragma GCC unroll 4
    for (int part = 0; part < parts; ++part) add(part, k + part);
#pragma GCC unroll 4
  for (int part = 0; part < parts; ++part)
    if (k + part < depth) add(part, k + part);
#pragma GCC unroll 6
  for (int i = 0; i < rows; ++i)
#pragma GCC unroll 4
    for (int j = 0; j < vectors; ++j) {
      Lanes sum = sums[0][i][j];
      for (int part = 1; part < parts; ++part) sum += sums[part][i][j];
      std::memcpy(to + i * to_stride + j * kTileLanes, &sum, sizeof(Lanes));
    }
}

template <int rows, int vectors, int parts, class L, class R>
void small_rows(L left, int64_t depth, R right, int64_t columns, const float* bias, float* to, int64_t to_stride) {
  int64_t j = 0;
  for (; j + vectors * kTileLanes <= columns; j += vectors * kTileLanes)
    small_tile<rows, vectors, parts>(left, depth, right.from_column(j), bias, to + j, to_stride);
  for (; j < columns; j += kTileLanes)
    small_tile<rows, 1, parts>(left, depth, right.from_column(j), bias, to + j, to_stride);
}

template <int rows_, int vectors_, int parts_>
struct Tile {
  static constexpr int rows = rows_, vectors = vectors_, parts = parts_;
};

// to[i * to_stride + j] = bias[i] + sum over k < depth of left(i, k) right(k, j) for i < rows and j < columns, of which
// there are a multiple of kTileLanes. No bias: 0. `parts` is 4 for long sums: those of up to 3 rows are made so.
template <int parts, class L, class R>
void small_product(L left, int64_t rows, int64_t depth, R right, int64_t columns, const float* bias, float* to,
                   int64_t to_stride) {
  constexpr int few = parts > 1 ? 1 : 4;  // vectors of up to 3 rows
  const bool threes = columns == 3 * kTileLanes;
  const int64_t most = threes ? 4 : 6;  // tiles of a dozen sums, whatever their shape
  for (int64_t i = 0; i < rows; i += most) {
    const L own = left.from_row(i);
    const float* const own_bias = bias ? bias + i : nullptr;
    float* const own_to = to + i * to_stride;
    const auto make = [&](auto tile) {
      small_rows<tile.rows, tile.vectors, tile.parts>(own, depth, right, columns, own_bias, own_to, to_stride);
    };
    switch (std::min(most, rows - i)) {
      case 1: make(Tile<1, few, parts>{}); break;
      case 2: make(Tile<2, few, parts>{}); break;
      case 3: threes ? make(Tile<3, 3, 1>{}) : make(Tile<3, few, parts>{}); break;
      case 4: threes ? make(Tile<4, 3, 1>{}) : make(Tile<4, 2, 1>{}); break;
      case 5: make(Tile<5, 2, 1>{}); break;
      default: make(Tile<6, 2, 1>{}); break;
    }
  }
}

constexpr int64_t kTurned = 8;  // rows and columns of what is turned at once

// to[j * to_stride + i] = from.row(i)[j] for i, j < kTurned.
template <class Rows>
PF_INLINE void turn_block(Rows from, float* to, int64_t to_stride) {
#if defined(__AVX2__)
  __m256 row[8], pair[8], quad[8];
#pragma GCC unroll 8
  for (int i = 0; i < 8; ++i) row[i] = _mm256_loadu_ps(from.row(i));
#pragma GCC unroll 4
  for (int i = 0; i < 8; i += 2) {
    pair[i] = _mm256_unpacklo_ps(row[i], row[i + 1]);
    pair[i + 1] = _mm256_unpackhi_ps(row[i], row[i + 1]);
  }
#pragma GCC unroll 2
  for (int i = 0; i < 8; i += 4) {
    quad[i] = _mm256_shuffle_ps(pair[i], pair[i + 2], 0x44);
    quad[i + 1] = _mm256_shuffle_ps(pair[i], pair[i + 2], 0xEE);
    quad[i + 2] = _mm256_shuffle_ps(pair[i + 1], pair[i + 3], 0x44);
    quad[i + 3] = _mm256_shuffle_ps(pair[i + 1], pair[i + 3], 0xEE);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    _mm256_storeu_ps(to + i * to_stride, _mm256_permute2f128_ps(quad[i], quad[i + 4], 0x20));
    _mm256_storeu_ps(to + (i + 4) * to_stride, _mm256_permute2f128_ps(quad[i], quad[i + 4], 0x31));
  }
#else
  for (int i = 0; i < kTurned; ++i)
    for (int j = 0; j < kTurned; ++j) to[j * to_stride + i] = from.row(i)[j];
#endif
}

// to[j * to_stride + i] = from.row(i)[j] for i < rows, j < columns, both multiples of kTurned.
template <class Rows>
void turn(Rows from, int64_t rows, int64_t columns, float* to, int64_t to_stride) {
  for (int64_t i = 0; i < rows; i += kTurned)
    for (int64_t j = 0; j < columns; j += kTurned)
      turn_block(from.from_row(i).from_column(j), to + j * to_stride + i, to_stride);
}

}  // namespace pf::PF_ISA
