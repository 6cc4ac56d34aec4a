// Products of small matrices that lie in cache: the left one by broadcast, with any strides, the right one by rows.
// Each element is the sum over k in order, one fma a term.
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
};

template <int rows, int vectors>
PF_INLINE void small_tile(Left left, int64_t depth, const float* right, int64_t stride, const float* bias, float* to,
                          int64_t to_stride) {
  using namespace tile;
  Lanes sums[rows][vectors];
#pragma GCC unroll 6
  for (int i = 0; i < rows; ++i)
#pragma GCC unroll 4
    for (int j = 0; j < vectors; ++j) sums[i][j] = Lanes{} + (bias ? bias[i] : 0.0f);
  for (int64_t k = 0; k < depth; ++k) {
    Lanes row[vectors];
#pragma GCC unroll 4
    for (int j = 0; j < vectors; ++j) row[j] = load(right + k * stride + j * kTileLanes);
#pragma GCC unroll 6
    for (int i = 0; i < rows; ++i)
#pragma GCC unroll 4
      for (int j = 0; j < vectors; ++j)
        sums[i][j] = multiply_add(left.at[i * left.row + k * left.column], row[j], sums[i][j]);
  }
#pragma GCC unroll 6
  for (int i = 0; i < rows; ++i)
#pragma GCC unroll 4
    for (int j = 0; j < vectors; ++j) std::memcpy(to + i * to_stride + j * kTileLanes, &sums[i][j], sizeof(Lanes));
}

// All columns of a few rows. Few rows need more vectors, so that sums do not wait for one another.
template <int rows>
void small_rows(Left left, int64_t depth, const float* right, int64_t stride, int64_t columns, const float* bias,
                float* to, int64_t to_stride) {
  constexpr int vectors = rows <= 3 ? 4 : 2;
  int64_t j = 0;
  for (; j + vectors * kTileLanes <= columns; j += vectors * kTileLanes)
    small_tile<rows, vectors>(left, depth, right + j, stride, bias, to + j, to_stride);
  for (; j < columns; j += kTileLanes) small_tile<rows, 1>(left, depth, right + j, stride, bias, to + j, to_stride);
}

// to[i * to_stride + j] = bias[i] + sum over k < depth of left(i, k) right[k * stride + j] for i < rows, j < columns, of
// which there are a multiple of kTileLanes. No bias: 0.
inline void small_product(Left left, int64_t rows, int64_t depth, const float* right, int64_t stride, int64_t columns,
                          const float* bias, float* to, int64_t to_stride) {
  constexpr int64_t kMost = 6;
  for (int64_t i = 0; i < rows; i += kMost) {
    const Left own{left.at + i * left.row, left.row, left.column};
    const float* const own_bias = bias ? bias + i : nullptr;
    float* const own_to = to + i * to_stride;
    switch (std::min(kMost, rows - i)) {
      case 1: small_rows<1>(own, depth, right, stride, columns, own_bias, own_to, to_stride); break;
      case 2: small_rows<2>(own, depth, right, stride, columns, own_bias, own_to, to_stride); break;
      case 3: small_rows<3>(own, depth, right, stride, columns, own_bias, own_to, to_stride); break;
      case 4: small_rows<4>(own, depth, right, stride, columns, own_bias, own_to, to_stride); break;
      case 5: small_rows<5>(own, depth, right, stride, columns, own_bias, own_to, to_stride); break;
      default: small_rows<6>(own, depth, right, stride, columns, own_bias, own_to, to_stride); break;
    }
  }
}

}  // namespace pf::PF_ISA
