// Cross entropy of one row of logits and its gradient, from sums of exponentials whose order is the same on every ISA.
#pragma once
#include <cmath>
#include <cstdint>

#include "core/cross_entropy.h"
#include "core/exp.h"

namespace pf::PF_ISA {

constexpr int kSumLanes = 16;            // float sums side by side, so that they are vectors
constexpr int64_t kSegmentLogits = 512;  // what they add up, 32 terms each, before a double takes over

// log(sum of exp) of the logits seen so far, which may come in parts.
struct LogSumExp {
  float max = -INFINITY;
  double sum = 0.0;  // of exp(logit - shift())

  // With nothing above -inf so far, differences from the maximum would be NaN.
  float shift() const { return max == -INFINITY ? 0.0f : max; }

  // At most kSegmentLogits of them.
  void add(const float* logits, int64_t count) {
    const int64_t whole = count - count % kSumLanes;
    float rest[kSumLanes];  // filled up with what adds nothing
    for (int lane = 0; lane < kSumLanes; ++lane) rest[lane] = lane < count - whole ? logits[whole + lane] : -INFINITY;

    float maxima[kSumLanes];
    for (int lane = 0; lane < kSumLanes; ++lane) maxima[lane] = rest[lane] > max ? rest[lane] : max;
    for (int64_t j = 0; j < whole; j += kSumLanes)
      for (int lane = 0; lane < kSumLanes; ++lane)
        maxima[lane] = logits[j + lane] > maxima[lane] ? logits[j + lane] : maxima[lane];
    for (int half = kSumLanes / 2; half > 0; half /= 2)
      for (int lane = 0; lane < half; ++lane)
        maxima[lane] = maxima[lane + half] > maxima[lane] ? maxima[lane + half] : maxima[lane];
    const float before = max;
    max = maxima[0];

    const float shifted_by = shift();
    float sums[kSumLanes];
    for (int lane = 0; lane < kSumLanes; ++lane) sums[lane] = exp(rest[lane] - shifted_by);
    for (int64_t j = 0; j < whole; j += kSumLanes)
      for (int lane = 0; lane < kSumLanes; ++lane) sums[lane] += exp(logits[j + lane] - shifted_by);
    for (int half = kSumLanes / 2; half > 0; half /= 2)
      for (int lane = 0; lane < half; ++lane) sums[lane] += sums[lane + half];
    sum = sum * double(exp(before - shifted_by)) + double(sums[0]);
  }

  float cross_entropy(float label_logit) const { return pf::cross_entropy(max, sum, label_logit); }

  // That of weight * cross_entropy, for all logits added; `to` may be `logits`.
  void gradient(const float* logits, int64_t count, int64_t label, float weight, float* to) const {
    const float scale = float(double(weight) / sum), shifted_by = shift();
    for (int64_t j = 0; j < count; ++j) to[j] = scale * exp(logits[j] - shifted_by);
    to[label] -= weight;
  }
};

inline bool labels_exist(const int64_t* labels, int64_t count, int64_t vocabulary, int64_t ignore_index) {
  for (int64_t i = 0; i < count; ++i)
    if (labels[i] != ignore_index && (labels[i] < 0 || labels[i] >= vocabulary)) return false;
  return true;
}

}  // namespace pf::PF_ISA
