// log(sum of exp) of logits that come a few at a time, to many hands at once: what each has seen is merged at the end.
#pragma once
#include <cmath>
#include <cstdint>

#include "core/cross_entropy.h"
#include "core/exp.h"
#include "core/platform.h"

namespace pf {

struct RunningExponentials {
  float max = -INFINITY;
  double sum = 0.0;  // of exp(logit - shift())

  // With nothing above -inf so far, differences from the maximum would be NaN.
  PF_INLINE float shift() const { return max == -INFINITY ? 0.0f : max; }

  PF_INLINE void raise_to(float logit) {
    const float before = max;
    max = logit > max ? logit : max;
    sum *= double(exp(before - shift()));
  }

  // -inf adds nothing, and may fill up the last few.
  template <int count>
  PF_INLINE void add(const float (&logits)[count]) {
    float top = logits[0];
    for (int i = 1; i < count; ++i) top = logits[i] > top ? logits[i] : top;
    raise_to(top);
    float part = 0.0f;
    for (int i = 0; i < count; ++i) part += exp(logits[i] - shift());
    sum += double(part);
  }

  PF_INLINE void merge(RunningExponentials other) {
    other.raise_to(max);
    raise_to(other.max);
    sum += other.sum;
  }

  PF_INLINE float cross_entropy(float label_logit) const { return pf::cross_entropy(max, sum, label_logit); }

  // What the exponentials of a token are multiplied by in the gradient of weight * cross_entropy.
  PF_INLINE float gradient_scale(float weight) const { return float(double(weight) / sum); }
};

}  // namespace pf
