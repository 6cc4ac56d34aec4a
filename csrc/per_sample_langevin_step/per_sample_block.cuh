// What one block does for per_sample_langevin_step, for itself and for fused_draw.
#pragma once
#include "core/block_sum.cuh"
#include "core/four.cuh"
#include "core/noise.h"
#include "per_sample_langevin_step/per_sample_rule.h"

namespace pf::cuda {

constexpr int kPerSampleThreads = 128;
constexpr int kPerSamplePiece = 4 * kPerSampleThreads;  // parameters of a block: four a thread, those of a counter

// One where a row is empty: its gradient noise scale wants writing all the same.
PF_INLINE int64_t per_sample_blocks_per_row(const PerSampleLangevinStep& op) {
  return op.param_count == 0 ? 1 : (op.param_count + kPerSamplePiece - 1) / kPerSamplePiece;
}

// Sums over the samples of a chain, for the `count` parameters at `grads`.
template <bool aligned, class Gradient>
__device__ void add_batch(const PerSampleLangevinStep& op, const Gradient* grads, const float* weights, int count,
                          float (&first)[4], float (&sum)[4], float (&squares)[4]) {
#pragma unroll 4
  for (int64_t sample = 0; sample < op.batch; ++sample) {
    float g[4];
    if constexpr (aligned)
      load_four_aligned(grads + sample * op.param_count, g);
    else
      load_some_of_four(grads + sample * op.param_count, count, g);
    const float rho = weights ? weights[sample] : 1.0f;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if (sample == 0) first[i] = rho * g[i];  // whose own difference, 0, adds nothing
      add_sample(rho * g[i], first[i], sum[i], squares[i]);
    }
  }
}

// The last block of a chain to arrive adds up what all of them left, in the order of the pieces.
template <class Gradient>
__device__ void per_sample_block(const PerSampleLangevinStep& op, int64_t block, double* piece_sums,
                                 unsigned* arrivals) {
  __shared__ double partial[kPerSampleThreads / 32][2];
  __shared__ bool is_last;
  const int64_t blocks_per_row = per_sample_blocks_per_row(op);
  const int64_t row = block / blocks_per_row;
  const int64_t index = (block - row * blocks_per_row) * kPerSampleThreads + threadIdx.x, at = 4 * index;
  const int count = int(max(int64_t{0}, min(int64_t{4}, op.param_count - at)));
  double sums[2] = {};  // of the variance, and of the squared mean
  if (count > 0) {
    const Gradient* const grads = static_cast<const Gradient*>(op.grads) + row * op.batch * op.param_count + at;
    const float* const weights = op.sample_weights ? op.sample_weights + row * op.batch : nullptr;
    float* const params = op.params + row * op.param_count + at;
    float w[4], w_star[4], first[4] = {}, sum[4] = {}, squares[4] = {};
    load_four(params, count, w);
    load_four(op.center + (op.center_rows == 1 ? 0 : row) * op.param_count + at, count, w_star);
    if (op.param_count % 4 == 0 && is_aligned(grads, 4 * sizeof(Gradient)))
      add_batch<true>(op, grads, weights, count, first, sum, squares);
    else
      add_batch<false>(op, grads, weights, count, first, sum, squares);
    float xi[4];
    four_normals(uint64_t(*op.seed), uint64_t(op.chain_ids[row]), uint64_t(*op.step), uint64_t(index), xi);
    const PerSampleChain chain = per_sample_chain(op, row);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const Moments g = moments(first[i], sum[i], squares[i], float(op.batch));
      w[i] = per_sample_rule(chain, w[i], g, w_star[i], xi[i]);
      sums[0] += double(g.variance);
      sums[1] += double(g.mean) * double(g.mean);
    }
    store_four(w, count, params);
  }
  block_sum<kPerSampleThreads>(sums, partial);
  if (threadIdx.x == 0) {
    piece_sums[2 * block] = sums[0];
    piece_sums[2 * block + 1] = sums[1];
    __threadfence();
    is_last = atomicAdd(&arrivals[row], 1u) == unsigned(blocks_per_row - 1);
    __threadfence();
  }
  __syncthreads();
  if (!is_last) return;
  sums[0] = sums[1] = 0.0;
  for (int64_t piece = threadIdx.x; piece < blocks_per_row; piece += kPerSampleThreads)
#pragma unroll
    for (int i = 0; i < 2; ++i) sums[i] += __ldcg(&piece_sums[2 * (row * blocks_per_row + piece) + i]);
  block_sum<kPerSampleThreads>(sums, partial);
  if (threadIdx.x == 0) {
    op.gradient_noise_scale[row] = gradient_noise_scale(sums[0], sums[1], double(op.batch));
    arrivals[row] = 0;
  }
}

}  // namespace pf::cuda
