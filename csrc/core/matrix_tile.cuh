// The inner loop of every matrix product on a GPU: a block's tile of 64 x 64, in registers while the depth goes by.
// Each element is the sum over k, in order, with one fma a term.
#pragma once
#include <cstdint>

#include "core/platform.h"

namespace pf::cuda {

constexpr int kTile = 64;
constexpr int kTileThreads = 128;
constexpr int kTileDepth = 8;             // of the panels held in shared memory at a time
constexpr int kRows = 8, kColumns = 4;    // of a thread
constexpr int kPanelStride = kTile + 4;   // spreads a column over the banks, and keeps rows of 16-byte alignment

using TilePart = float[kRows][kColumns];

// A thread's first row and first column: the 8 x 4 threads of a warp share what they read of the panels.
inline __device__ int tile_row() {
  return kRows * int(threadIdx.x % 32 / 8 + threadIdx.x / 64 * 4);
}
inline __device__ int tile_column() {
  return kColumns * int(threadIdx.x % 8 + threadIdx.x / 32 % 2 * 8);
}

struct Panels {
  alignas(16) float a[2][kTileDepth][kPanelStride];
  alignas(16) float b[2][kTileDepth][kPanelStride];
};

// A thread brings four neighbours in memory to a panel: four k of one i, where the matrix runs along the depth, or four
// i of one k. Where the first of them goes:
template <bool along_depth>
__device__ int panel_k() {
  return along_depth ? int(threadIdx.x % 2) * 4 : int(threadIdx.x / 16);
}
template <bool along_depth>
__device__ int panel_i() {
  return along_depth ? int(threadIdx.x / 2) : int(threadIdx.x % 16) * 4;
}
static_assert(kTile * kTileDepth == 4 * kTileThreads);

template <bool along_depth>
__device__ void put_four(const float (&four)[4], float (&panel)[kTileDepth][kPanelStride]) {
  const int k = panel_k<along_depth>(), i = panel_i<along_depth>();
  if constexpr (along_depth) {
#pragma unroll
    for (int j = 0; j < 4; ++j) panel[k + j][i] = four[j];
  } else {
    *reinterpret_cast<float4*>(&panel[k][i]) = make_float4(four[0], four[1], four[2], four[3]);
  }
}

inline __device__ void multiply_panels(const Panels& panels, int which, TilePart& sums) {
  const int row = tile_row(), column = tile_column();
#pragma unroll
  for (int k = 0; k < kTileDepth; ++k) {
    const float4 low = *reinterpret_cast<const float4*>(&panels.a[which][k][row]);
    const float4 high = *reinterpret_cast<const float4*>(&panels.a[which][k][row + 4]);
    const float4 across = *reinterpret_cast<const float4*>(&panels.b[which][k][column]);
    const float a[kRows] = {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w};
    const float b[kColumns] = {across.x, across.y, across.z, across.w};
#pragma unroll
    for (int i = 0; i < kRows; ++i)
#pragma unroll
      for (int j = 0; j < kColumns; ++j) sums[i][j] = fma(a[i], b[j], sums[i][j]);
  }
}

// sums[i][j] += sum over k < depth of a(k, i) b(k, j), for the thread's i and j of the tile.
// A and B tell how their matrix runs, `along_depth`; fetch(k, four) begins to bring the thread's four of the panel that
// starts at k (k may reach past depth: 0 there, and outside the matrix), and finish(four) ends it, when the loads have
// had time. after_panel(which) is called by all threads when panels.*[which] are whole. A barrier stands at the end.
template <class A, class B, class AfterPanel>
__device__ void multiply_tile(Panels& panels, int64_t depth, const A& a, const B& b, TilePart& sums,
                              const AfterPanel& after_panel) {
  float four_a[4], four_b[4];
  const auto fetch = [&](int64_t k) {
    a.fetch(k + panel_k<A::along_depth>(), four_a);
    b.fetch(k + panel_k<B::along_depth>(), four_b);
  };
  const auto put = [&](int which) {
    a.finish(four_a);
    b.finish(four_b);
    put_four<A::along_depth>(four_a, panels.a[which]);
    put_four<B::along_depth>(four_b, panels.b[which]);
  };
  if (depth <= 0) return;
  fetch(0);
  put(0);
  __syncthreads();
  int which = 0;
  for (int64_t k = 0; k < depth; k += kTileDepth) {
    const bool more = k + kTileDepth < depth;
    if (more) fetch(k + kTileDepth);
    multiply_panels(panels, which, sums);
    after_panel(which);
    // Nobody reads the other panels now: all have passed the barrier at the end of the turn that did.
    if (more) put(which ^ 1);
    __syncthreads();
    which ^= 1;
  }
}

}  // namespace pf::cuda
