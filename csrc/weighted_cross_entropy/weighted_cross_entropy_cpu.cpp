#include "weighted_cross_entropy/weighted_cross_entropy.h"

#include <algorithm>

#include "core/log_sum_exp.h"
#include "core/parallel.h"

namespace pf::PF_ISA {

namespace {

constexpr int64_t kPieceLogits = 16384;  // what a thread takes at a time, at least

void differentiate_token(const WeightedCrossEntropy& op, int64_t token) {
  const int64_t vocabulary = op.vocabulary, label = op.labels[token];
  const float* const logits = op.logits + token * vocabulary;
  float* const gradient = op.grad_logits ? op.grad_logits + token * vocabulary : nullptr;
  if (label == op.ignore_index) {
    op.losses[token] = 0.0f;
    if (gradient) std::fill_n(gradient, vocabulary, 0.0f);
    return;
  }
  LogSumExp row;
  for (int64_t first = 0; first < vocabulary; first += kSegmentLogits)
    row.add(logits + first, std::min(kSegmentLogits, vocabulary - first));
  op.losses[token] = row.cross_entropy(logits[label]);
  if (gradient) row.gradient(logits, vocabulary, label, op.weights ? op.weights[token] : 1.0f, gradient);
}

}  // namespace

CrossEntropyStatus weighted_cross_entropy(const WeightedCrossEntropy& op, int threads) {
  if (!labels_exist(op.labels, op.tokens, op.vocabulary, op.ignore_index)) return CrossEntropyStatus::bad_labels;
  const int64_t piece = 1 + kPieceLogits / (op.vocabulary + 1);
  parallel_for((op.tokens + piece - 1) / piece, threads, [&](int64_t at) {
    for (int64_t token = at * piece; token < std::min((at + 1) * piece, op.tokens); ++token)
      differentiate_token(op, token);
  });
  return CrossEntropyStatus::done;
}

}  // namespace pf::PF_ISA
