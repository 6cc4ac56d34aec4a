#include "langevin_step/langevin_step.h"

#include <algorithm>
#include <vector>

#include "core/parallel.h"
#include "core/pieces.h"
#include "langevin_step/step_row.h"

namespace pf::PF_ISA {

namespace {

// Every piece has read its chain's thermostat by now.
void finish(const LangevinStep& op, const std::vector<Piece>& pieces, const std::vector<PieceResult>& results) {
  std::vector<PieceResult> chains(size_t(op.chains));
  for (size_t i = 0; i < pieces.size(); ++i) {
    PieceResult& chain = chains[size_t(pieces[i].row)];
    chain.squared_gradient += results[i].squared_gradient;
    chain.squared_distance += results[i].squared_distance;
    chain.gradient_dot_distance += results[i].gradient_dot_distance;
    chain.squared_momentum += results[i].squared_momentum;
    chain.finite &= results[i].finite;
  }
  for (int64_t chain = 0; chain < op.chains; ++chain) {
    const PieceResult& sums = chains[size_t(chain)];
    const auto write = [&](StepStatistic name, double value) { op.statistics[int(name) * op.chains + chain] = value; };
    if (op.statistics) {
      write(StepStatistic::squared_gradient, sums.squared_gradient);
      write(StepStatistic::squared_distance, sums.squared_distance);
      write(StepStatistic::gradient_dot_distance, sums.gradient_dot_distance);
      write(StepStatistic::finite, sums.finite ? 1.0 : 0.0);
    }
    const int64_t length = op.row_starts[chain + 1] - op.row_starts[chain];
    if (op.thermostat && length > 0)
      op.thermostat[chain] = warmer(op, chain, sums.squared_momentum, length);
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
  const std::vector<Piece> pieces =
      pieces_of_rows(op.chains, [&](int64_t chain) { return op.row_starts[chain + 1] - op.row_starts[chain]; });
  std::vector<PieceResult> results(pieces.size());
  parallel_for(int64_t(pieces.size()), threads,
               [&](int64_t i) { results[size_t(i)] = step_piece(op, pieces[size_t(i)]); });
  if (op.statistics || op.thermostat) finish(op, pieces, results);
  return status;
}

}  // namespace pf::PF_ISA
