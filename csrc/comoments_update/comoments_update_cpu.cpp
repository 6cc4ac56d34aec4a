#include "comoments_update/comoments_update.h"

#include <algorithm>

#include "core/platform.h"

namespace pf::PF_ISA {

namespace {

constexpr int64_t kPiece = 2048;  // losses a thread takes at a time: their totals stay in its cache over all chains

double shifted_observable(const ComomentsUpdate& op, int64_t chain, int64_t k) {
  return double(op.observables[chain * op.observable_count + k]) - double(op.observable_shift[k]);
}

void add_losses(const ComomentsUpdate& op, int64_t chain, int64_t begin, int64_t end) {
  const int64_t group = op.groups[chain];
  const float* const losses = op.losses + chain * op.loss_count;
  double* const loss_sum = op.loss_sum + group * op.loss_count;
  for (int64_t j = begin; j < end; ++j) loss_sum[j] += double(losses[j]) - double(op.loss_shift[j]);
  for (int64_t k = 0; k < op.observable_count; ++k) {
    const double phi = shifted_observable(op, chain, k);
    double* const cross = op.cross + (group * op.observable_count + k) * op.loss_count;
    for (int64_t j = begin; j < end; ++j) cross[j] = fma(phi, double(losses[j]) - double(op.loss_shift[j]), cross[j]);
  }
}

void add_observables(const ComomentsUpdate& op, int64_t chain) {
  const int64_t group = op.groups[chain], n = op.observable_count;
  op.count[group] += 1.0;
  for (int64_t k = 0; k < n; ++k) {
    const double phi = shifted_observable(op, chain, k);
    op.observable_sum[group * n + k] += phi;
    for (int64_t m = 0; m < n; ++m) {
      double& square = op.observable_square[(group * n + k) * n + m];
      square = fma(phi, shifted_observable(op, chain, m), square);
    }
  }
}

}  // namespace

// Threads share the losses, never the chains: each total is added to in the order of the chains, whatever the threads.
ComomentsStatus comoments_update(const ComomentsUpdate& op, int threads) {
  for (int64_t chain = 0; chain < op.chains; ++chain)
    if (op.groups[chain] < 0 || op.groups[chain] >= op.group_count) return ComomentsStatus::bad_groups;
  for (int64_t chain = 0; chain < op.chains; ++chain) add_observables(op, chain);
#pragma omp parallel for schedule(static) num_threads(threads)
  for (int64_t begin = 0; begin < op.loss_count; begin += kPiece)
    for (int64_t chain = 0; chain < op.chains; ++chain)
      add_losses(op, chain, begin, std::min(begin + kPiece, op.loss_count));
  return ComomentsStatus::done;
}

ComomentsStatus loss_comoments_update(const LossComomentsUpdate&, int) { return ComomentsStatus::done; }

}  // namespace pf::PF_ISA
