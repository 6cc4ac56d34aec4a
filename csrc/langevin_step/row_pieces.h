// Rows of any lengths, cut into pieces that blocks of a grid find for themselves: only row_starts, in the device's
// memory, tells the lengths.
//
// Row c owns the slots first_slot(c) to first_slot(c + 1), with first_slot(c) = row_starts[c] / kRowPiece + c. They
// suffice: for a start a P + x and a length b P + y (x, y < P) there are b + 1 or more, and the row has at most b + 1
// pieces, b where y = 0. As first_slot grows with every row, a slot has one owner, found by bisection. All rows
// together have total / kRowPiece + rows slots; those a row does not need are empty.
#pragma once
#include <cstdint>

#include "core/platform.h"

namespace pf {

constexpr int kRowPiece = 2048;

struct RowPiece {
  int64_t row, begin;  // begin within the row
  int count;           // 0 for an empty slot
};

PF_INLINE int64_t row_slots(int64_t total, int64_t rows) { return total / kRowPiece + rows; }

PF_INLINE int64_t first_slot(const int64_t* row_starts, int64_t row) { return row_starts[row] / kRowPiece + row; }

PF_INLINE RowPiece piece_in_slot(const int64_t* row_starts, int64_t rows, int64_t slot) {
  int64_t row = 0, next = rows;  // the owner is in [row, next)
  while (next - row > 1) {
    const int64_t middle = row + (next - row) / 2;
    if (first_slot(row_starts, middle) <= slot)
      row = middle;
    else
      next = middle;
  }
  const int64_t begin = (slot - first_slot(row_starts, row)) * kRowPiece;
  const int64_t left = row_starts[row + 1] - row_starts[row] - begin;
  return {row, begin, int(left <= 0 ? 0 : left < kRowPiece ? left : kRowPiece)};
}

}  // namespace pf
