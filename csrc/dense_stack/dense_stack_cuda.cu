#include "bindings/cuda_forms.h"
#include "dense_stack/dense_kernels.cuh"

namespace pf::cuda {

namespace {

// A plan for the current device, and how many blocks run it: one a chain, or as many as run at once where each has a
// part of the workspace.
struct DenseLaunch {
  DensePlan plan;
  int64_t blocks;

  int64_t workspace() const { return plan.workspace * blocks; }
};

cudaError_t launch_of(const DenseStack& stack, int64_t chains, int64_t batch, int64_t steps, DenseUse use,
                      DenseLaunch& launch) {
  int device, multiprocessors, whole, of_multiprocessor, reserved;
  cudaError_t error = cudaGetDevice(&device);
  const auto read = [&](cudaDeviceAttr attribute, int& value) {
    if (error == cudaSuccess) error = cudaDeviceGetAttribute(&value, attribute, device);
  };
  read(cudaDevAttrMultiProcessorCount, multiprocessors);
  read(cudaDevAttrMaxSharedMemoryPerBlockOptin, whole);
  read(cudaDevAttrMaxSharedMemoryPerMultiprocessor, of_multiprocessor);
  read(cudaDevAttrReservedSharedMemoryPerBlock, reserved);
  if (error != cudaSuccess) return error;
  launch.plan = dense_plan(stack, batch, steps, use, {whole, of_multiprocessor / 2 - reserved});
  const int64_t at_once = 2 * int64_t(multiprocessors);
  launch.blocks = launch.plan.workspace ? std::min(chains, at_once) : chains;
  return error;
}

cudaError_t launch_of(const DenseSteps& op, DenseLaunch& launch) {
  const DenseUse use = op.corrects_noise ? DenseUse::corrected_steps : DenseUse::steps;
  return launch_of(op.stack, op.op.chains, op.batch, op.steps, use, launch);
}

cudaError_t launch_of(const DenseLosses& op, DenseLaunch& launch) {
  return launch_of(op.stack, op.chains, op.stack.samples, 0, DenseUse::losses, launch);
}

template <class Op>
cudaError_t run(void (*kernel)(Op, DensePlan, float*), const Op& op, const DenseLaunch& launch, float* workspace,
                cudaStream_t stream) {
  const int bytes = int(4 * launch.plan.shared);
  cudaError_t error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
  if (error == cudaSuccess)
    error =
        cudaFuncSetAttribute(kernel, cudaFuncAttributePreferredSharedMemoryCarveout, cudaSharedmemCarveoutMaxShared);
  if (error != cudaSuccess) return error;
  kernel<<<unsigned(launch.blocks), unsigned(launch.plan.threads), size_t(bytes), stream>>>(op, launch.plan, workspace);
  return cudaGetLastError();
}

template <DenseUse use>
auto steps_kernel(const DensePlan& plan) {
  return plan.workspace               ? dense_steps_kernel<use, kManyWarps, false>
         : plan.threads == kWarp      ? dense_steps_kernel<use, kWarp, true>
         : plan.threads == kSomeWarps ? dense_steps_kernel<use, kSomeWarps, true>
                                      : dense_steps_kernel<use, kManyWarps, true>;
}

auto losses_kernel(const DensePlan& plan) {
  return plan.workspace               ? dense_losses_kernel<kManyWarps, false>
         : plan.threads == kWarp      ? dense_losses_kernel<kWarp, true>
         : plan.threads == kSomeWarps ? dense_losses_kernel<kSomeWarps, true>
                                      : dense_losses_kernel<kManyWarps, true>;
}

}  // namespace

cudaError_t dense_losses_workspace(const DenseLosses& op, int64_t& floats) {
  DenseLaunch launch{};
  const cudaError_t error = launch_of(op, launch);
  floats = launch.workspace();
  return error;
}

cudaError_t dense_losses(DenseLosses op, const DenseLayer* layers, float* workspace, cudaStream_t stream) {
  if (op.chains == 0) return cudaSuccess;
  DenseLaunch launch;
  if (const cudaError_t error = launch_of(op, launch); error != cudaSuccess) return error;
  op.stack.layers = layers;
  return run(losses_kernel(launch.plan), op, launch, workspace, stream);
}

cudaError_t dense_steps_workspace(const DenseSteps& op, int64_t& floats) {
  DenseLaunch launch{};
  const cudaError_t error = launch_of(op, launch);
  floats = launch.workspace();
  return error;
}

cudaError_t dense_steps(DenseSteps op, const DenseLayer* layers, float* workspace, cudaStream_t stream) {
  if (op.op.chains == 0) return cudaSuccess;
  DenseLaunch launch;
  if (const cudaError_t error = launch_of(op, launch); error != cudaSuccess) return error;
  op.stack.layers = layers;
  return run(op.corrects_noise ? steps_kernel<DenseUse::corrected_steps>(launch.plan)
                               : steps_kernel<DenseUse::steps>(launch.plan),
             op, launch, workspace, stream);
}

}  // namespace pf::cuda
