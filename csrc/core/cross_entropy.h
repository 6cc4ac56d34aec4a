// The loss of a token from what its logits came to: the same for every form.
#pragma once
#include "core/normal.h"
#include "core/platform.h"

namespace pf {

// max - label_logit + log(sum), where sum is that of exp(logit - max).
PF_INLINE float cross_entropy(float max, double sum, float label_logit) {
  const float rounded = float(sum);
  // log takes no NaN: the remainder, besides what it adds, is NaN where the sum is.
  const double log_sum = double(log(rounded)) + (sum - double(rounded)) / sum;
  return float(double(max) - double(label_logit) + log_sum);
}

}  // namespace pf
