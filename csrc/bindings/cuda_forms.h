// The CUDA kernels. Pointers of an op's struct are of the device here; each form launches on `stream`, waits for
// nothing, allocates nothing and returns cudaGetLastError(). What an op cannot check without waiting for the device
// is safe but silent: rows and groups out of range are left alone, a label out of range makes its loss NaN.
#pragma once
#include <cuda_runtime_api.h>

#include "dense_stack/dense_stack.h"
#include "fused_draw/fused_draw.h"
#include "langevin_step/langevin_step.h"
#include "linear_cross_entropy/linear_cross_entropy.h"
#include "normal/normal.h"
#include "weighted_cross_entropy/weighted_cross_entropy.h"

namespace pf::cuda {

cudaError_t normal(const Normal&, cudaStream_t);

// piece_sums: langevin_step_sums(op) doubles, need not be set.
int64_t langevin_step_sums(const LangevinStep&);
cudaError_t langevin_step(const LangevinStep&, double* piece_sums, cudaStream_t);

// piece_sums: per_sample_sums(op) doubles, need not be set; arrivals: one per chain, 0 before and after.
int64_t per_sample_sums(const PerSampleLangevinStep&);
cudaError_t per_sample_langevin_step(const PerSampleLangevinStep&, double* piece_sums, unsigned* arrivals,
                                     cudaStream_t);

cudaError_t comoments_update(const ComomentsUpdate&, cudaStream_t);
cudaError_t loss_comoments_update(const LossComomentsUpdate&, cudaStream_t);

// One launch. piece_sums and arrivals as for per_sample_langevin_step.
cudaError_t fused_draw(const PerSampleLangevinStep&, const ComomentsUpdate&, double* piece_sums, unsigned* arrivals,
                       cudaStream_t);

// exponentials: two floats per token of every chain, 8-byte aligned, need not be set.
cudaError_t linear_cross_entropy(const LinearCrossEntropy&, float* exponentials, cudaStream_t);
cudaError_t weighted_cross_entropy(const WeightedCrossEntropy&, cudaStream_t);

// The stack's layers are the host's, which tell how much shared memory a chain takes; `layers`, the same, the device's.
// workspace: as many floats as the other function says for the current device, 16-byte aligned, need not be set.
cudaError_t dense_losses_workspace(const DenseLosses&, int64_t& floats);
cudaError_t dense_losses(DenseLosses, const DenseLayer* layers, float* workspace, cudaStream_t);
cudaError_t dense_steps_workspace(const DenseSteps&, int64_t& floats);
cudaError_t dense_steps(DenseSteps, const DenseLayer* layers, float* workspace, cudaStream_t);

}  // namespace pf::cuda
