// Matrix products of any size from tiles. Threads share a slab of the right matrix, packed; each takes blocks of rows
// of the left one. Every element is the sum over k in order, one fma a term, however the work is cut and shared.
#pragma once
#include <algorithm>
#include <cstdint>
#include <memory>

#include "core/matrix_tile.h"
#include "core/parallel.h"

namespace pf::PF_ISA {

constexpr int64_t kPieceDepth = 256;  // a panel of this depth stays in L1 while the tiles of a block pass by
constexpr int64_t kBlockRows = 96;    // of the left matrix, packed: they stay in L2 while the panels pass by
// Of the right matrix at once, packed: at most so many columns and floats. Slabs of fewer columns are counted as
// multiples of the least, itself a multiple of every tile's.
constexpr int64_t kSlabColumns = 512, kLeastColumns = 64, kSlabFloats = kSlabColumns * 512;

struct alignas(64) CacheLine {
  float floats[16];
};

// Floats that begin a cache line and hold nothing yet.
class Buffer {
 public:
  explicit Buffer(int64_t size) : lines_(new CacheLine[size_t((size + 15) / 16)]) {}
  float* floats() const { return lines_[0].floats; }

 private:
  std::unique_ptr<CacheLine[]> lines_;
};

// Element (i, k) is at[i * row_stride + k * column_stride].
struct Matrix {
  const float* at;
  int64_t row_stride, column_stride;

  const float* element(int64_t row, int64_t column) const { return at + row * row_stride + column * column_stride; }
};

inline int64_t divide_up(int64_t value, int64_t by) { return (value + by - 1) / by; }

// How many rows a thread takes at a time: kBlockRows or fewer, so that all threads get as many blocks.
inline int64_t block_rows(int64_t rows, int threads) {
  const int64_t blocks = std::max<int64_t>(divide_up(divide_up(rows, kBlockRows), threads) * threads, 1);
  return std::max<int64_t>(divide_up(divide_up(rows, blocks), kTileRows), 1) * kTileRows;
}

// `depth` rows and `columns` columns of the right matrix, as panels.
inline void pack_slab(Matrix right, int64_t depth, int64_t columns, int threads, float* panels) {
  parallel_for(divide_up(columns, kTileColumns), threads, [&](int64_t panel) {
    const int64_t first = panel * kTileColumns;
    pack<kTileColumns>(right.element(0, first), right.column_stride, right.row_stride,
                       std::min<int64_t>(kTileColumns, columns - first), depth, panels + first * depth);
  });
}

// One tile of the result, of which only some rows and columns exist.
inline void multiply_partial_tile(const float* left, const float* right, int64_t depth, float* to, int64_t stride,
                                  bool add, int64_t rows, int64_t columns) {
  float whole[kTileRows * kTileColumns] = {};
  for (int64_t i = 0; add && i < rows; ++i) std::copy_n(to + i * stride, columns, whole + i * kTileColumns);
  multiply_tile(left, right, depth, whole, kTileColumns, add);
  for (int64_t i = 0; i < rows; ++i) std::copy_n(whole + i * kTileColumns, columns, to + i * stride);
}

// to (+)= left times the slab, for at most kBlockRows rows; `packed` has room for kBlockRows * kPieceDepth.
inline void multiply_block(Matrix left, int64_t rows, const float* panels, int64_t depth, int64_t columns, bool add,
                           float* to, int64_t stride, float* packed) {
  int64_t k = 0;
  do {  // once even where depth is 0: the result is then 0
    const int64_t piece = std::min(kPieceDepth, depth - k);
    for (int64_t i = 0; i < rows; i += kTileRows)
      pack<kTileRows>(left.element(i, k), left.row_stride, left.column_stride, std::min<int64_t>(kTileRows, rows - i),
                      piece, packed + i * piece);
    for (int64_t j = 0; j < columns; j += kTileColumns) {
      const float* const panel = panels + j * depth + k * kTileColumns;
      for (int64_t i = 0; i < rows; i += kTileRows) {
        float* const tile = to + i * stride + j;
        if (i + kTileRows <= rows && j + kTileColumns <= columns)
          multiply_tile(packed + i * piece, panel, piece, tile, stride, add || k > 0);
        else
          multiply_partial_tile(packed + i * piece, panel, piece, tile, stride, add || k > 0,
                                std::min<int64_t>(kTileRows, rows - i), std::min<int64_t>(kTileColumns, columns - j));
      }
    }
    k += piece;
  } while (k < depth);
}

// What products write to on their way.
struct Workspace {
  int threads;
  Buffer panels, blocks;

  explicit Workspace(int threads_, int64_t slab = kSlabFloats)
      : threads(threads_), panels(slab), blocks(threads_ * kBlockRows * kPieceDepth) {}
  float* block(int64_t worker) const { return blocks.floats() + worker * kBlockRows * kPieceDepth; }
};

// to[i * stride + j] (+)= sum over k < depth of left(i, k) right(k, j) for i < rows, j < columns.
inline void multiply(Matrix left, Matrix right, int64_t rows, int64_t depth, int64_t columns, bool add, float* to,
                     int64_t stride, const Workspace& workspace) {
  const int64_t block = block_rows(rows, workspace.threads);
  for (int64_t j = 0; j < columns; j += kSlabColumns) {
    const int64_t slab_columns = std::min(kSlabColumns, columns - j);
    const int64_t deepest = kSlabFloats / (divide_up(slab_columns, kLeastColumns) * kLeastColumns);
    int64_t k = 0;
    do {
      const int64_t slab_depth = std::min(deepest, depth - k);
      pack_slab({right.element(k, j), right.row_stride, right.column_stride}, slab_depth, slab_columns,
                workspace.threads, workspace.panels.floats());
      parallel_for_workers(divide_up(rows, block), workspace.threads, [&](int64_t at, int64_t worker) {
        const int64_t i = at * block;
        multiply_block({left.element(i, k), left.row_stride, left.column_stride}, std::min(block, rows - i),
                       workspace.panels.floats(), slab_depth, slab_columns, add || k > 0, to + i * stride + j, stride,
                       workspace.block(worker));
      });
      k += slab_depth;
    } while (k < depth);
  }
}

}  // namespace pf::PF_ISA
