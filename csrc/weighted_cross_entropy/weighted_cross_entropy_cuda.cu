#include "bindings/cuda_forms.h"
#include "core/running_exponentials.h"

namespace pf::cuda {

namespace {

constexpr int kThreads = 256;
constexpr int64_t kShortVocabulary = 2048;  // up to which a warp takes a token, beyond which a block
constexpr int kAtOnce = 4;                  // logits of a thread, loaded before the first is used

// The same for all threads of a team: what they have seen, in the order of the threads' binary tree, then of the warps.
template <int team>
__device__ RunningExponentials merge_team(RunningExponentials seen) {
  for (int offset = 16; offset > 0; offset /= 2) {
    const float max = __shfl_down_sync(0xFFFFFFFFu, seen.max, offset);
    const double sum = __shfl_down_sync(0xFFFFFFFFu, seen.sum, offset);
    seen.merge({max, sum});
  }
  if constexpr (team == 32) return {__shfl_sync(0xFFFFFFFFu, seen.max, 0), __shfl_sync(0xFFFFFFFFu, seen.sum, 0)};
  __shared__ float max[team / 32];
  __shared__ double sum[team / 32];
  if (threadIdx.x % 32 == 0) max[threadIdx.x / 32] = seen.max, sum[threadIdx.x / 32] = seen.sum;
  __syncthreads();
  RunningExponentials all;
  for (int warp = 0; warp < team / 32; ++warp) all.merge({max[warp], sum[warp]});
  return all;
}

// A team of threads takes a token. The gradient may lie where the logits are: no thread writes before the team has
// merged, and so read, everything; then each thread writes what it reads.
template <int team>
__global__ void __launch_bounds__(kThreads) weighted_cross_entropy_kernel(const WeightedCrossEntropy op) {
  const int64_t token = int64_t(blockIdx.x) * (kThreads / team) + threadIdx.x / team;
  const int member = int(threadIdx.x) % team;
  if (token >= op.tokens) return;  // with all of its team
  const int64_t label = op.labels[token], vocabulary = op.vocabulary;
  const float* const logits = op.logits + token * vocabulary;
  float* const gradient = op.grad_logits ? op.grad_logits + token * vocabulary : nullptr;
  const bool exists = label >= 0 && label < vocabulary;
  if (label == op.ignore_index || !exists) {
    if (member == 0) op.losses[token] = label == op.ignore_index ? 0.0f : NAN;
    if (gradient)
      for (int64_t j = member; j < vocabulary; j += team) gradient[j] = 0.0f;
    return;
  }
  const float label_logit = logits[label];
  RunningExponentials seen;
  for (int64_t first = member; first < vocabulary; first += kAtOnce * team) {
    float some[kAtOnce];
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) some[i] = first + i * team < vocabulary ? logits[first + i * team] : -INFINITY;
    seen.add(some);
  }
  seen = merge_team<team>(seen);
  if (member == 0) op.losses[token] = seen.cross_entropy(label_logit);
  if (!gradient) return;
  const float weight = op.weights ? op.weights[token] : 1.0f;
  const float scale = seen.gradient_scale(weight), shift = seen.shift();
#pragma unroll 4
  for (int64_t j = member; j < vocabulary; j += team)
    gradient[j] = scale * exp(logits[j] - shift) - (j == label ? weight : 0.0f);
}

}  // namespace

cudaError_t weighted_cross_entropy(const WeightedCrossEntropy& op, cudaStream_t stream) {
  if (op.tokens == 0) return cudaSuccess;
  if (op.vocabulary <= kShortVocabulary) {
    constexpr int teams = kThreads / 32;
    weighted_cross_entropy_kernel<32><<<unsigned((op.tokens + teams - 1) / teams), kThreads, 0, stream>>>(op);
  } else {
    weighted_cross_entropy_kernel<kThreads><<<unsigned(op.tokens), kThreads, 0, stream>>>(op);
  }
  return cudaGetLastError();
}

}  // namespace pf::cuda
