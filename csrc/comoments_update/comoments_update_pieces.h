// The work of a comoments update, cut into pieces that threads run in any order, alone or among those of another op.
// A piece is a rectangle of the totals, never a share of the chains: each total is one thread's, and is added to in
// the order of the chains. Neither the cut nor the form changes a bit: each element is a run of fma over the chains of
// a block, from 0, and then one addition in double.
#pragma once
#include <algorithm>
#include <cstdint>
#include <vector>

#include "comoments_update/comoments_update.h"
#include "core/matrix_tile.h"
#include "core/platform.h"

namespace pf::PF_ISA {

inline bool groups_exist(const int64_t* groups, int64_t chains, int64_t group_count) {
  return std::all_of(groups, groups + chains, [=](int64_t group) { return group >= 0 && group < group_count; });
}

// Chains of one group that are packed together, so that totals cross memory once for several blocks.
constexpr int64_t kSlabChains = 4 * kBlockChains;
struct Slab {
  int64_t group, begin, end;  // places in the gathered order
};

// A type of this namespace, as every vector's: else the linker would mix the vectors of different ISAs.
struct GatheredChain {
  int64_t chain;
};

// The chains by group, each group's in their order.
struct Gathering {
  Gathering(const int64_t* groups, int64_t chains, int64_t group_count) : order(chains) {
    std::vector<Slab> members(group_count, Slab{0, 0, 0});
    for (int64_t chain = 0; chain < chains; ++chain) ++members[groups[chain]].end;
    int64_t begin = 0;
    for (int64_t group = 0; group < group_count; ++group) {
      const int64_t end = begin + members[group].end;
      for (int64_t at = begin; at < end; at += kSlabChains)
        slabs.push_back({group, at, std::min(at + kSlabChains, end)});
      members[group] = {group, begin, begin};
      begin = end;
    }
    for (int64_t chain = 0; chain < chains; ++chain) order[members[groups[chain]].end++] = {chain};
  }

  int64_t chains() const { return int64_t(order.size()); }

  std::vector<GatheredChain> order;
  std::vector<Slab> slabs;
};

struct Values {
  const float* values;  // [chains, count]
  const float* shift;   // [count]
  int64_t count;

  PF_INLINE float shifted(int64_t chain, int64_t i) const { return values[chain * count + i] - shift[i]; }
};

// Adds 1 and each left value times each right value to `sum` [groups, right] and `product` [groups, left, right].
class Products {
 public:
  Products(const Gathering& gathering, Values left, Values right, double* sum, double* product)
      : Products(gathering, left, right, sum, product, false) {}

  // Each value times each other: only what is on or above the diagonal is computed, and added on both sides of it.
  Products(const Gathering& gathering, Values values, double* sum, double* square)
      : Products(gathering, values, values, sum, square, true) {}

  int64_t count() const { return int64_t(pieces_.size()); }

  void run(int64_t piece) const {
    if (streams_)
      stream<kStreamedRows>(pieces_[piece]);
    else
      multiply(pieces_[piece]);
  }

 private:
  // Row 0 is 1, row i the left value i - 1.
  struct Piece {
    int64_t row_begin, row_end, column_begin, column_end;
  };
  // Rows of one chain: what multiply_tile calls a panel is a run of these.
  struct TileRows {
    float values[kTileRows];
  };
  typedef double Doubles __attribute__((vector_size(8 * kTileLanes)));

  static constexpr int64_t kPieceRows = 240, kPieceColumns = 128;  // with kSlabChains, panels that fit an L2 cache
  static constexpr int kStreamedRows = 9;                          // at most; more are a matrix product
  static constexpr int64_t kStripColumns = 2048;                   // streamed at a time: two pages of each chain's row
  static constexpr int kStripChains = 4;
  static_assert(kPieceRows % kTileRows == 0 && kPieceColumns % kTileColumns == 0);

  Products(const Gathering& gathering, Values left, Values right, double* sum, double* product, bool symmetric)
      : gathering_(gathering),
        left_(left),
        right_(right),
        sum_(sum),
        product_(product),
        symmetric_(symmetric),
        streams_(!symmetric && rows() <= kStreamedRows),
        left_rows_((rows() + kTileRows - 1) / kTileRows * gathering.chains(), TileRows{}) {
    const int64_t row_step = streams_ ? rows() : kPieceRows, column_step = streams_ ? kStripColumns : kPieceColumns;
    for (int64_t row = 0; row < rows(); row += row_step)
      for (int64_t column = 0; column < right.count; column += column_step) {
        const Piece piece{row, std::min(row + row_step, rows()), column, std::min(column + column_step, right.count)};
        if (!symmetric || reaches_diagonal(row, piece.column_end)) pieces_.push_back(piece);
      }
    for (int64_t row = 0; row < rows(); row += kTileRows) {
      TileRows* const to = left_rows_.data() + row / kTileRows * gathering.chains();
      const int64_t end = std::min<int64_t>(row + kTileRows, rows());
      for (int64_t at = 0; at < gathering.chains(); ++at)
        for (int64_t i = row; i < end; ++i)
          to[at].values[i - row] = i == 0 ? 1.0f : left.shifted(gathering.order[at].chain, i - 1);
    }
  }

  int64_t rows() const { return 1 + left_.count; }
  // Whether a rectangle that begins at this row and ends at this column holds any left value's product with itself or
  // with a later one.
  static bool reaches_diagonal(int64_t row, int64_t column_end) { return column_end > row - 1; }

  const TileRows* panel(int64_t row) const { return left_rows_.data() + row / kTileRows * gathering_.chains(); }

  double* totals(int64_t group, int64_t row) const {
    return row == 0 ? sum_ + group * right_.count : product_ + (group * left_.count + row - 1) * right_.count;
  }

  // Few rows: each loss is read once, and its row's sums stay in cache over the chains of a block.
  template <int row_count>
  void stream(const Piece& piece) const {
    if constexpr (row_count > 1)
      if (rows() < row_count) return stream<row_count - 1>(piece);
    alignas(64) float sums[row_count][kStripColumns];
    const int64_t width = piece.column_end - piece.column_begin;
    for (const Slab& slab : gathering_.slabs)
      for (int64_t begin = slab.begin; begin < slab.end; begin += kBlockChains) {
        const int64_t end = std::min(begin + kBlockChains, slab.end);
        for (int row = 0; row < row_count; ++row) std::fill_n(sums[row], width, 0.0f);
        int64_t at = begin;
        for (; at + kStripChains <= end; at += kStripChains) {
          ask_for_totals<row_count>(slab.group, piece, at - begin);
          add_chains<row_count, kStripChains>(at, piece.column_begin, width, sums);
        }
        for (; at < end; ++at) add_chains<row_count, 1>(at, piece.column_begin, width, sums);
        for (int row = 0; row < row_count; ++row) {
          double* const to = totals(slab.group, row) + piece.column_begin;
          for (int64_t j = 0; j < width; ++j) to[j] += double(sums[row][j]);
        }
      }
  }

  // The share of a block's totals that falls to the chains from `done` on: memory fetches them while those are read.
  template <int row_count>
  void ask_for_totals(int64_t group, const Piece& piece, int64_t done) const {
    constexpr int64_t kShare = kStripColumns * kStripChains / kBlockChains, kLine = 8;
    const int64_t begin = piece.column_begin + done / kStripChains * kShare;
    for (int row = 0; row < row_count; ++row)
      for (int64_t column = begin; column < std::min(begin + kShare, piece.column_end); column += kLine)
        __builtin_prefetch(totals(group, row) + column, 1);
  }

  // Some chains at once, so that the sums are loaded and stored once for all of them. Row 0 is 1, whose fma is a sum.
  template <int row_count, int chains>
  void add_chains(int64_t at, int64_t column, int64_t width, float (*sums)[kStripColumns]) const {
    const float* const shift = right_.shift + column;
    // Each chain's row is another page, which memory would reach too late unless asked for ahead of time.
    const float *from[chains], *next[chains];
    float left[chains][row_count];
    for (int k = 0; k < chains; ++k) {
      from[k] = right_.values + gathering_.order[at + k].chain * right_.count + column;
      const int64_t after = std::min(at + chains + k, gathering_.chains() - 1);
      next[k] = right_.values + gathering_.order[after].chain * right_.count + column;
      for (int row = 0; row < row_count; ++row) left[k][row] = panel(row)[at + k].values[row % kTileRows];
    }
    int64_t j = 0;
    for (; j + kTileLanes <= width; j += kTileLanes) {
      const tile::Lanes about = tile::load(shift + j);
      tile::Lanes total[row_count];
#pragma GCC unroll 9
      for (int row = 0; row < row_count; ++row) total[row] = tile::load(sums[row] + j);
#pragma GCC unroll 4
      for (int k = 0; k < chains; ++k) {
        __builtin_prefetch(next[k] + j);
        const tile::Lanes value = tile::load(from[k] + j) - about;
        total[0] += value;
#pragma GCC unroll 9
        for (int row = 1; row < row_count; ++row) total[row] = tile::multiply_add(left[k][row], value, total[row]);
      }
#pragma GCC unroll 9
      for (int row = 0; row < row_count; ++row) std::memcpy(sums[row] + j, &total[row], sizeof total[row]);
    }
    for (; j < width; ++j)
      for (int row = 0; row < row_count; ++row)
        for (int k = 0; k < chains; ++k) sums[row][j] = fma(left[k][row], from[k][j] - shift[j], sums[row][j]);
  }

  // Many rows: a matrix product of packed panels.
  void multiply(const Piece& piece) const {
    alignas(64) float right[kPieceColumns * kSlabChains];
    for (const Slab& slab : gathering_.slabs) {
      pack_right(slab, piece, right);
      for (int64_t column = piece.column_begin; column < piece.column_end; column += kTileColumns) {
        const float* const panel = right + (column - piece.column_begin) * (slab.end - slab.begin);
        for (int64_t row = piece.row_begin; row < piece.row_end; row += kTileRows) {
          if (symmetric_ && !reaches_diagonal(row, column + kTileColumns)) break;
          multiply_tiles(slab, row, column, panel);
        }
      }
    }
  }

  // panels[column / kTileColumns][chain of the slab][column % kTileColumns], 0 past the last column.
  void pack_right(const Slab& slab, const Piece& piece, float* panels) const {
    const int64_t chains = slab.end - slab.begin;
    for (int64_t k = 0; k < chains; ++k) {
      const float* const from = right_.values + gathering_.order[slab.begin + k].chain * right_.count;
      float* to = panels + k * kTileColumns;
      int64_t column = piece.column_begin;
      for (; column + kTileColumns <= piece.column_end; column += kTileColumns, to += chains * kTileColumns)
#pragma GCC unroll 2
        for (int j = 0; j < kTileColumns; j += kTileLanes) {
          const tile::Lanes value = tile::load(from + column + j) - tile::load(right_.shift + column + j);
          std::memcpy(to + j, &value, sizeof value);
        }
      if (column < piece.column_end)
        for (int64_t j = 0; j < kTileColumns; ++j)
          to[j] = column + j < piece.column_end ? from[column + j] - right_.shift[column + j] : 0.0f;
    }
  }

  // One tile of the totals, over the blocks of a slab.
  void multiply_tiles(const Slab& slab, int64_t row, int64_t column, const float* right) const {
    const TileRows* const left = panel(row);
    const int64_t height = std::min<int64_t>(kTileRows, rows() - row);
    const int64_t width = std::min<int64_t>(kTileColumns, right_.count - column);
    const bool whole = height == kTileRows && width == kTileColumns;
    const bool crosses_diagonal = symmetric_ && (row == 0 || column < row + kTileRows - 1);
    for (int64_t i = 0; i < height; ++i)
      for (int64_t j = 0; j < width; j += 8) __builtin_prefetch(totals(slab.group, row + i) + column + j, 1);
    for (int64_t begin = slab.begin; begin < slab.end; begin += kBlockChains) {
      alignas(64) float sums[kTileRows][kTileColumns];
      const int64_t depth = std::min(kBlockChains, slab.end - begin);
      multiply_tile(left[begin].values, right + (begin - slab.begin) * kTileColumns, depth, sums[0], kTileColumns,
                    false);
      if (crosses_diagonal)
        add_at_diagonal(slab.group, row, height, column, width, sums);
      else if (whole)
        add_whole(slab.group, row, column, sums);
      else
        add(slab.group, row, height, column, width, sums);
    }
  }

  void add_whole(int64_t group, int64_t row, int64_t column, const float (*sums)[kTileColumns]) const {
#pragma GCC unroll 12
    for (int i = 0; i < kTileRows; ++i) {
      double* const to = totals(group, row + i) + column;
#pragma GCC unroll 2
      for (int j = 0; j < kTileColumns; j += kTileLanes) {
        Doubles total;
        std::memcpy(&total, to + j, sizeof total);
        total += __builtin_convertvector(tile::load(&sums[i][j]), Doubles);
        std::memcpy(to + j, &total, sizeof total);
      }
    }
    if (symmetric_) add_mirrored(group, row, kTileRows, column, kTileColumns, sums);
  }

  void add(int64_t group, int64_t row, int64_t height, int64_t column, int64_t width,
           const float (*sums)[kTileColumns]) const {
    for (int64_t i = 0; i < height; ++i)
      for (int64_t j = 0; j < width; ++j) totals(group, row + i)[column + j] += double(sums[i][j]);
    if (symmetric_) add_mirrored(group, row, height, column, width, sums);
  }

  PF_INLINE void add_mirrored(int64_t group, int64_t row, int64_t height, int64_t column, int64_t width,
                              const float (*sums)[kTileColumns]) const {
    for (int64_t j = 0; j < width; ++j) {
      double* const to = totals(group, 1 + column + j) + row - 1;
      for (int64_t i = 0; i < height; ++i) to[i] += double(sums[i][j]);
    }
  }

  void add_at_diagonal(int64_t group, int64_t row, int64_t height, int64_t column, int64_t width,
                       const float (*sums)[kTileColumns]) const {
    for (int64_t i = row; i < row + height; ++i)
      for (int64_t j = std::max(column, i - 1); j < column + width; ++j) {
        const double added = double(sums[i - row][j - column]);
        totals(group, i)[j] += added;
        if (i > 0 && j > i - 1) totals(group, 1 + j)[i - 1] += added;
      }
  }

  const Gathering& gathering_;
  Values left_, right_;
  double *sum_, *product_;
  bool symmetric_, streams_;
  std::vector<TileRows> left_rows_;  // [panels of kTileRows rows][chains, gathered]
  std::vector<Piece> pieces_;
};

inline void add_counts(const Gathering& gathering, double* count) {
  for (const Slab& slab : gathering.slabs) count[slab.group] += double(slab.end - slab.begin);
}

// The pieces of comoments_update. Every group must exist.
class ComomentsPieces {
 public:
  explicit ComomentsPieces(const ComomentsUpdate& op)
      : count_(op.count),
        gathering_(op.groups, op.chains, op.group_count),
        cross_(gathering_, observables(op), {op.losses, op.loss_shift, op.loss_count}, op.loss_sum, op.cross),
        square_(gathering_, observables(op), op.observable_sum, op.observable_square) {}
  ComomentsPieces(const ComomentsPieces&) = delete;

  int64_t count() const { return 1 + cross_.count() + square_.count(); }

  void run(int64_t piece) const {
    if (piece == 0)
      add_counts(gathering_, count_);
    else if (piece <= cross_.count())
      cross_.run(piece - 1);
    else
      square_.run(piece - 1 - cross_.count());
  }

 private:
  static Values observables(const ComomentsUpdate& op) {
    return {op.observables, op.observable_shift, op.observable_count};
  }

  double* count_;
  Gathering gathering_;
  Products cross_, square_;
};

}  // namespace pf::PF_ISA
