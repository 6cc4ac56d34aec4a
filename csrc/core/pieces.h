// Rows cut into the pieces that threads take, and sums over a row that do not depend on who took what.
#pragma once
#include <algorithm>
#include <cstdint>
#include <vector>

#include "core/platform.h"

namespace pf::PF_ISA {

constexpr int64_t kPiece = 4096;

struct Piece {
  int64_t row, begin, end;  // of the row's numbers
};

// Pieces of rows whose lengths are `length(row)`; empty rows have none.
template <class Length>
std::vector<Piece> pieces_of_rows(int64_t rows, const Length& length) {
  std::vector<Piece> pieces;
  for (int64_t row = 0; row < rows; ++row) {
    const int64_t end = length(row);
    for (int64_t begin = 0; begin < end; begin += kPiece) pieces.push_back({row, begin, std::min(begin + kPiece, end)});
  }
  return pieces;
}

// A sum over a piece: number i goes to lane i % kLanes, in float, and the lanes are added up in double, in order.
class PieceSum {
 public:
  static constexpr int kLanes = 16;

  // Adds a[i] * b[i] for i < count; `at`, the place of the first in the piece, is a multiple of kLanes.
  inline __attribute__((always_inline)) void add_products(const float* a, const float* b, int count) {
    int i = 0;
    for (; i + kLanes <= count; i += kLanes)
      for (int lane = 0; lane < kLanes; ++lane) lanes_[lane] = fma(a[i + lane], b[i + lane], lanes_[lane]);
    for (int lane = 0; i + lane < count; ++lane) lanes_[lane] = fma(a[i + lane], b[i + lane], lanes_[lane]);
  }

  double total() const {
    double sum = 0.0;
    for (const float lane : lanes_) sum += double(lane);
    return sum;
  }

 private:
  float lanes_[kLanes] = {};
};

}  // namespace pf::PF_ISA
