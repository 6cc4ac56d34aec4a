#include "bindings/cuda_forms.h"
#include "comoments_update/comoments_block.cuh"

namespace pf::cuda {

namespace {

template <bool streamed>
__global__ void __launch_bounds__(kComomentsThreads, kComomentsBlocks<streamed>)
    comoments_kernel(const ComomentsUpdate op) {
  comoments_block<streamed>(op, blockIdx.x);
}

// One where there are no losses: the chains want counting all the same.
PF_INLINE int64_t loss_blocks_of_group(const LossComomentsUpdate& op) {
  const int64_t tiles = tiles_of(op.loss_count);
  return tiles == 0 ? 1 : tiles * (tiles + 1) / 2;
}

// Of the tiles, in rows, those on or above the diagonal: row r has tiles - r.
__global__ void __launch_bounds__(kComomentsThreads, kComomentsBlocks<false>)
    loss_comoments_kernel(const LossComomentsUpdate op) {
  const int64_t tiles = tiles_of(op.loss_count), of_group = loss_blocks_of_group(op);
  const int64_t group = blockIdx.x / of_group;
  int64_t tile = blockIdx.x - group * of_group, row = 0;
  if (tile == 0) count_chains(op.groups, op.chains, group, op.count);
  if (tiles == 0) return;
  for (; tile >= tiles - row; ++row) tile -= tiles - row;
  const int64_t column = row + tile;
  const MomentProduct product = {op.losses, op.loss_shift, op.losses, op.loss_shift, op.loss_square, op.loss_sum,
                                 op.groups, op.chains, op.loss_count, op.loss_count};
  moment_tile(product, group, row * kTile, column * kTile, row != column);
}

}  // namespace

cudaError_t comoments_update(const ComomentsUpdate& op, cudaStream_t stream) {
  const int64_t blocks = op.group_count * ComomentsGrid(op).blocks;
  if (blocks == 0 || op.chains == 0) return cudaSuccess;
  const auto kernel = is_streamed(op) ? comoments_kernel<true> : comoments_kernel<false>;
  kernel<<<unsigned(blocks), kComomentsThreads, 0, stream>>>(op);
  return cudaGetLastError();
}

cudaError_t loss_comoments_update(const LossComomentsUpdate& op, cudaStream_t stream) {
  const int64_t blocks = op.group_count * loss_blocks_of_group(op);
  if (blocks == 0 || op.chains == 0) return cudaSuccess;
  loss_comoments_kernel<<<unsigned(blocks), kComomentsThreads, 0, stream>>>(op);
  return cudaGetLastError();
}

}  // namespace pf::cuda
