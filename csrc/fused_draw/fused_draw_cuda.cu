#include "bindings/cuda_forms.h"
#include "comoments_update/comoments_block.cuh"
#include "per_sample_langevin_step/per_sample_block.cuh"

namespace pf::cuda {

namespace {

static_assert(kComomentsThreads == kPerSampleThreads);

// The first blocks take the co-moments, which last longer; the others the step. Neither reads what the other writes.
template <class Gradient, bool streamed>
__global__ void __launch_bounds__(kComomentsThreads, kComomentsBlocks<streamed>)
    fused_draw_kernel(const PerSampleLangevinStep step, const ComomentsUpdate comoments, int64_t comoments_blocks,
                      double* piece_sums, unsigned* arrivals) {
  if (blockIdx.x < comoments_blocks)
    comoments_block<streamed>(comoments, blockIdx.x);
  else
    per_sample_block<Gradient>(step, blockIdx.x - comoments_blocks, piece_sums, arrivals);
}

template <class Gradient>
void launch(const PerSampleLangevinStep& step, const ComomentsUpdate& comoments, double* piece_sums,
            unsigned* arrivals, cudaStream_t stream) {
  const int64_t comoments_blocks =
      comoments.chains == 0 ? 0 : comoments.group_count * ComomentsGrid(comoments).blocks;
  const int64_t blocks = comoments_blocks + step.chains * per_sample_blocks_per_row(step);
  if (blocks == 0) return;
  const auto kernel = is_streamed(comoments) ? fused_draw_kernel<Gradient, true> : fused_draw_kernel<Gradient, false>;
  kernel<<<unsigned(blocks), kComomentsThreads, 0, stream>>>(step, comoments, comoments_blocks, piece_sums, arrivals);
}

}  // namespace

cudaError_t fused_draw(const PerSampleLangevinStep& step, const ComomentsUpdate& comoments, double* piece_sums,
                       unsigned* arrivals, cudaStream_t stream) {
  if (step.grads_are_bfloat16)
    launch<uint16_t>(step, comoments, piece_sums, arrivals, stream);
  else
    launch<float>(step, comoments, piece_sums, arrivals, stream);
  return cudaGetLastError();
}

}  // namespace pf::cuda
