// What one block does for comoments_update and loss_comoments_update, for themselves and for fused_draw: it owns a
// tile of one group's totals and walks the chains of that group. Groups that do not exist are nobody's.
#pragma once
#include "comoments_update/comoments_update.h"
#include "core/four.cuh"
#include "core/matrix_tile.cuh"

namespace pf::cuda {

constexpr int kComomentsThreads = kTileThreads;
constexpr int kStreamedObservables = 8;          // up to so many a thread holds all observables' totals of its losses
constexpr int kWindow = 32 * kComomentsThreads;  // chains looked through at a time

// Blocks that a multiprocessor's registers are to suffice for: as many as nothing spills at.
template <bool streamed>
constexpr int kComomentsBlocks = streamed ? 5 : 3;

// The chains of a group within a window, in order.
class ChainList {
 public:
  // All threads call this; the list is whole after it.
  __device__ void fill(const int64_t* groups, int64_t chains, int64_t group, int64_t window) {
    const int lane = int(threadIdx.x % 32), warp = int(threadIdx.x / 32);
    uint32_t mine = 0;  // of the 32 chains from 32 threadIdx.x on, those of the group
#pragma unroll 8
    for (int word = 0; word < 32; ++word) {
      const int64_t chain = window + 32 * (32 * warp + word) + lane;
      const uint32_t found = __ballot_sync(0xFFFFFFFFu, chain < chains && groups[chain] == group);
      if (lane == word) mine = found;
    }
    int through = __popc(mine);  // up to and with this thread's
    for (int offset = 1; offset < 32; offset *= 2) {
      const int before = __shfl_up_sync(0xFFFFFFFFu, through, offset);
      if (lane >= offset) through += before;
    }
    __syncthreads();  // the list of the window before has been read
    if (lane == 31) of_warp_[warp] = through;
    __syncthreads();
    int at = through - __popc(mine);
    for (int before = 0; before < warp; ++before) at += of_warp_[before];
    for (; mine != 0; mine &= mine - 1) offsets_[at++] = uint16_t(32 * threadIdx.x + __ffs(int(mine)) - 1);
    window_ = window;
    __syncthreads();
  }

  __device__ int size() const {
    int all = 0;
    for (const int each : of_warp_) all += each;
    return all;
  }

  __device__ int64_t operator[](int i) const { return window_ + offsets_[i]; }

 private:
  int of_warp_[kComomentsThreads / 32];
  uint16_t offsets_[kWindow];
  int64_t window_;
};

// totals[group] += sum over its chains of a b', and b_sum[group] += that of b, with a and b taken about their shifts.
struct MomentProduct {
  const float* a;         // [chains, a_count]
  const float* a_shift;   // [a_count]
  const float* b;         // [chains, b_count]
  const float* b_shift;   // [b_count]
  double* totals;         // [groups, a_count, b_count]
  double* b_sum;          // [groups, b_count]
  const int64_t* groups;  // [chains]
  int64_t chains, a_count, b_count;
};

PF_INLINE int64_t tiles_of(int64_t count) { return (count + kTile - 1) / kTile; }

// Panels whose k are listed chains, and whose i are columns of a matrix about its shifts.
class ShiftedRows {
 public:
  static constexpr bool along_depth = false;

  __device__ ShiftedRows(const ChainList& list, const float* matrix, const float* shifts, int64_t columns,
                         int64_t first)
      : list_(list), stride_(columns) {
    const int64_t column = first + panel_i<along_depth>();
    count_ = int(max(int64_t{0}, min(int64_t{4}, columns - column)));
    matrix_ = matrix + column;
    load_some_of_four(shifts + column, count_, shift_);
  }

  // Of the list, the next product takes those from begin to end - 1.
  __device__ void set_range(int begin, int end) { begin_ = begin, end_ = end; }

  __device__ void fetch(int64_t k, float (&four)[4]) const {
    const int at = begin_ + int(k);
#pragma unroll
    for (int i = 0; i < 4; ++i) four[i] = shift_[i];  // less the shift: 0
    if (at < end_) load_four(matrix_ + list_[at] * stride_, count_, four);
  }

  __device__ void finish(float (&four)[4]) const {
#pragma unroll
    for (int i = 0; i < 4; ++i) four[i] -= shift_[i];
  }

 private:
  const ChainList& list_;
  const float* matrix_;  // the thread's columns, at chain 0
  int64_t stride_;
  float shift_[4];
  int count_, begin_ = 0, end_ = 0;
};

// The tile of totals whose first row is `row` and first column `column`. Mirrored, it is added to its place across the
// diagonal as well.
inline __device__ void moment_tile(const MomentProduct& op, int64_t group, int64_t row, int64_t column, bool mirrored) {
  __shared__ Panels panels;
  __shared__ ChainList list;
  double totals[kRows][kColumns] = {}, column_total = 0.0;
  ShiftedRows a(list, op.a, op.a_shift, op.a_count, row), b(list, op.b, op.b_shift, op.b_count, column);
  const bool sums_columns = row == 0 && threadIdx.x < kTile;
  for (int64_t window = 0; window < op.chains; window += kWindow) {
    list.fill(op.groups, op.chains, group, window);
    const int size = list.size();
    for (int first = 0; first < size; first += int(kBlockChains)) {
      const int end = min(first + int(kBlockChains), size);
      a.set_range(first, end);
      b.set_range(first, end);
      TilePart sums = {};
      float column_sum = 0.0f;
      multiply_tile(panels, end - first, a, b, sums, [&](int which) {
        if (sums_columns)
          for (int k = 0; k < kTileDepth; ++k) column_sum += panels.b[which][k][threadIdx.x];
      });
      column_total += double(column_sum);
#pragma unroll
      for (int i = 0; i < kRows; ++i)
#pragma unroll
        for (int j = 0; j < kColumns; ++j) totals[i][j] += double(sums[i][j]);
    }
  }
  double* const of_group = op.totals + group * op.a_count * op.b_count;
  const int64_t first_row = row + tile_row(), first_column = column + tile_column();
#pragma unroll
  for (int i = 0; i < kRows; ++i)
#pragma unroll
    for (int j = 0; j < kColumns; ++j)
      if (first_row + i < op.a_count && first_column + j < op.b_count) {
        of_group[(first_row + i) * op.b_count + first_column + j] += totals[i][j];
        if (mirrored) of_group[(first_column + j) * op.b_count + first_row + i] += totals[i][j];
      }
  if (sums_columns && column + threadIdx.x < op.b_count)
    op.b_sum[group * op.b_count + column + threadIdx.x] += column_total;
}

// Adds the number of the group's chains to its count.
inline __device__ void count_chains(const int64_t* groups, int64_t chains, int64_t group, double* count) {
  __shared__ int total;
  if (threadIdx.x == 0) total = 0;
  __syncthreads();
  int mine = 0;
  for (int64_t chain = threadIdx.x; chain < chains; chain += kComomentsThreads) mine += groups[chain] == group;
  atomicAdd(&total, mine);
  __syncthreads();
  if (threadIdx.x == 0) count[group] += double(total);
}

// Few observables: their totals fit into the registers of the thread that owns a loss, so that no tile is half empty.
// phi of up to kBlockChains listed chains, 0 past the last observable.
struct StreamedObservables {
  ChainList list;
  alignas(16) float phi[kBlockChains][kStreamedObservables];

  // Calls body(first, count) for the chains list[first] to list[first + count - 1], a block of them at a time, with
  // phi[0] that of the first.
  template <class Body>
  __device__ void for_each_block(const ComomentsUpdate& op, int64_t group, const Body& body) {
    for (int64_t window = 0; window < op.chains; window += kWindow) {
      list.fill(op.groups, op.chains, group, window);
      const int size = list.size();
      for (int first = 0; first < size; first += int(kBlockChains)) {
        const int count = min(int(kBlockChains), size - first);
        __syncthreads();  // phi of the chains before has been read
        for (int i = int(threadIdx.x); i < count * kStreamedObservables; i += kComomentsThreads) {
          const int k = i % kStreamedObservables, at = i / kStreamedObservables;
          phi[at][k] = k < op.observable_count ? op.observables[list[first + at] * op.observable_count + k] -
                                                     op.observable_shift[k]
                                               : 0.0f;
        }
        __syncthreads();
        body(first, count);
      }
    }
  }
};

// A thread owns one loss: its sum, and its totals with all observables.
inline __device__ void streamed_losses(const ComomentsUpdate& op, StreamedObservables& observables, int64_t group,
                                       int64_t first_loss) {
  const int64_t loss = first_loss + threadIdx.x;
  const bool exists = loss < op.loss_count;
  const float* const losses = op.losses + (exists ? loss : 0);
  const float shift = exists ? op.loss_shift[loss] : 0.0f;
  double loss_total = 0.0, totals[kStreamedObservables] = {};
  observables.for_each_block(op, group, [&](int first, int count) {
    float loss_sum = 0.0f, sums[kStreamedObservables] = {};
#pragma unroll 8
    for (int at = 0; at < count; ++at) {
      const float l = exists ? losses[observables.list[first + at] * op.loss_count] - shift : 0.0f;
      loss_sum += l;
#pragma unroll
      for (int k = 0; k < kStreamedObservables; ++k) sums[k] = fma(observables.phi[at][k], l, sums[k]);
    }
    loss_total += double(loss_sum);
#pragma unroll
    for (int k = 0; k < kStreamedObservables; ++k) totals[k] += double(sums[k]);
  });
  if (!exists) return;
  op.loss_sum[group * op.loss_count + loss] += loss_total;
#pragma unroll
  for (int k = 0; k < kStreamedObservables; ++k)
    if (k < op.observable_count) op.cross[(group * op.observable_count + k) * op.loss_count + loss] += totals[k];
}

// The first threads own a pair of observables each, the next a sum, one the count.
inline __device__ void streamed_squares(const ComomentsUpdate& op, StreamedObservables& observables, int64_t group) {
  constexpr int pairs = kStreamedObservables * kStreamedObservables;
  static_assert(pairs + kStreamedObservables < kComomentsThreads);
  const int thread = int(threadIdx.x), k = thread % kStreamedObservables, m = thread / kStreamedObservables;
  double total = 0.0;
  int64_t chains = 0;
  observables.for_each_block(op, group, [&](int, int count) {
    float sum = 0.0f;
    for (int at = 0; at < count; ++at)
      sum = fma(observables.phi[at][k], thread < pairs ? observables.phi[at][m] : 1.0f, sum);
    total += double(sum);
    chains += count;
  });
  if (thread == kComomentsThreads - 1) op.count[group] += double(chains);
  if (k >= op.observable_count) return;
  if (thread < pairs && m < op.observable_count)
    op.observable_square[(group * op.observable_count + k) * op.observable_count + m] += total;
  else if (thread >= pairs && m == kStreamedObservables)
    op.observable_sum[group * op.observable_count + k] += total;
}

PF_INLINE bool is_streamed(const ComomentsUpdate& op) { return op.observable_count <= kStreamedObservables; }

// How the blocks of a group share its totals: first those of observable_square, then those of cross.
struct ComomentsGrid {
  int64_t square_blocks, cross_columns, blocks;

  PF_INLINE explicit ComomentsGrid(const ComomentsUpdate& op) {
    const int64_t tiles = tiles_of(op.observable_count);
    const bool streamed = is_streamed(op);
    square_blocks = streamed ? 1 : tiles * tiles;
    cross_columns = streamed ? (op.loss_count + kComomentsThreads - 1) / kComomentsThreads : tiles_of(op.loss_count);
    blocks = square_blocks + (streamed ? 1 : tiles) * cross_columns;
  }
};

template <bool streamed>
__device__ void comoments_block(const ComomentsUpdate& op, int64_t block) {
  const ComomentsGrid grid(op);
  const int64_t group = block / grid.blocks, of_group = block - group * grid.blocks;
  const bool is_cross = of_group >= grid.square_blocks;
  const int64_t tile = is_cross ? of_group - grid.square_blocks : of_group;
  if constexpr (streamed) {
    __shared__ StreamedObservables observables;
    if (is_cross)
      streamed_losses(op, observables, group, tile * kComomentsThreads);
    else
      streamed_squares(op, observables, group);
  } else {
    MomentProduct product = {op.observables, op.observable_shift, op.observables, op.observable_shift,
                             op.observable_square, op.observable_sum, op.groups, op.chains,
                             op.observable_count, op.observable_count};
    if (is_cross) {
      product.b = op.losses, product.b_shift = op.loss_shift, product.b_count = op.loss_count;
      product.totals = op.cross, product.b_sum = op.loss_sum;
    } else if (tile == 0) {
      count_chains(op.groups, op.chains, group, op.count);
    }
    const int64_t columns = tiles_of(product.b_count), row = tile / columns;
    moment_tile(product, group, row * kTile, (tile - row * columns) * kTile, false);
  }
}

}  // namespace pf::cuda
