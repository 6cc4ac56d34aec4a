#include "langevin_step/langevin_step.h"

#include <algorithm>
#include <cmath>

#include "core/noise_block.h"

namespace pf::PF_ISA {

namespace {

constexpr int64_t kPiece = 64 * kBlock;  // what a thread takes at a time

void step_piece(const LangevinStep& op, int64_t chain, int64_t begin, int64_t end) {
  const int64_t row = op.row_starts[chain];
  float* const params = op.params + row;
  float* const grads = op.grads + row;
  const float* const center = op.center + op.center_starts[chain];
  const float n_beta = op.n_beta[chain], localization = op.localization[chain];
  const float drift_scale = -0.5f * op.lr[chain];
  const float noise_scale = op.noise_scale[chain] * std::sqrt(op.lr[chain]);
  float noise[kBlock];
  for (int64_t at = begin; at < end; at += kBlock) {
    fill_noise_block(uint64_t(*op.seed), uint64_t(op.chain_ids[chain]), uint64_t(*op.step), uint64_t(at) / 4, noise);
    const int count = int(std::min<int64_t>(kBlock, end - at));
    for (int i = 0; i < count; ++i) {
      const float w = params[at + i];
      const float drift = fma(n_beta, grads[at + i], localization * (w - center[at + i]));
      params[at + i] = fma(noise_scale, noise[i], fma(drift_scale, drift, w));
      grads[at + i] = 0.0f;
    }
  }
}

LangevinStepStatus check(const LangevinStep& op) {
  const int64_t* const starts = op.row_starts;
  if (starts[0] != 0 || starts[op.chains] != op.param_count || !std::is_sorted(starts, starts + op.chains + 1))
    return LangevinStepStatus::bad_row_starts;
  for (int64_t chain = 0; chain < op.chains; ++chain) {
    const int64_t length = starts[chain + 1] - starts[chain];
    if (op.center_starts[chain] < 0 || op.center_starts[chain] + length > op.center_count)
      return LangevinStepStatus::bad_center_starts;
  }
  return LangevinStepStatus::done;
}

}  // namespace

LangevinStepStatus langevin_step(const LangevinStep& op, int threads) {
  const LangevinStepStatus status = check(op);
  if (status != LangevinStepStatus::done) return status;
#pragma omp parallel for schedule(dynamic, 1) num_threads(threads)
  for (int64_t chain = 0; chain < op.chains; ++chain) {
    const int64_t length = op.row_starts[chain + 1] - op.row_starts[chain];
    for (int64_t begin = 0; begin < length; begin += kPiece)
      step_piece(op, chain, begin, std::min(begin + kPiece, length));
  }
  return status;
}

}  // namespace pf::PF_ISA
