#include "bindings/cuda_forms.h"
#include "per_sample_langevin_step/per_sample_block.cuh"

namespace pf::cuda {

namespace {

template <class Gradient>
__global__ void __launch_bounds__(kPerSampleThreads)
    per_sample_kernel(const PerSampleLangevinStep op, double* piece_sums, unsigned* arrivals) {
  per_sample_block<Gradient>(op, blockIdx.x, piece_sums, arrivals);
}

}  // namespace

int64_t per_sample_sums(const PerSampleLangevinStep& op) { return 2 * op.chains * per_sample_blocks_per_row(op); }

cudaError_t per_sample_langevin_step(const PerSampleLangevinStep& op, double* piece_sums, unsigned* arrivals,
                                     cudaStream_t stream) {
  if (op.chains == 0) return cudaSuccess;
  const auto kernel = op.grads_are_bfloat16 ? per_sample_kernel<uint16_t> : per_sample_kernel<float>;
  kernel<<<unsigned(op.chains * per_sample_blocks_per_row(op)), kPerSampleThreads, 0, stream>>>(op, piece_sums,
                                                                                               arrivals);
  return cudaGetLastError();
}

}  // namespace pf::cuda
