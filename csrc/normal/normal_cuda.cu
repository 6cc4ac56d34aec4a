#include "bindings/cuda_forms.h"
#include "core/four.cuh"
#include "core/noise.h"

namespace pf::cuda {

namespace {

constexpr int kThreads = 256;

// A thread makes the four normals of one counter. Blocks go along a row, then to the next.
__global__ void __launch_bounds__(kThreads) normal_kernel(const Normal op, int64_t blocks_per_row) {
  const int64_t row = blockIdx.x / blocks_per_row;
  const int64_t index = (blockIdx.x - row * blocks_per_row) * kThreads + threadIdx.x;
  const int64_t at = 4 * index;
  if (at >= op.param_count) return;
  float xi[4];
  four_normals(uint64_t(*op.seed), uint64_t(op.chain_ids[row]), uint64_t(*op.step), uint64_t(index), xi);
  store_four(xi, int(min(int64_t{4}, op.param_count - at)), op.out + row * op.param_count + at);
}

}  // namespace

cudaError_t normal(const Normal& op, cudaStream_t stream) {
  const int64_t blocks_per_row = (op.param_count + 4 * kThreads - 1) / (4 * kThreads);
  const int64_t blocks = op.chains * blocks_per_row;
  if (blocks == 0) return cudaSuccess;
  normal_kernel<<<unsigned(blocks), kThreads, 0, stream>>>(op, blocks_per_row);
  return cudaGetLastError();
}

}  // namespace pf::cuda
