// Cross entropy of given logits, and the gradient of the weighted sum of losses.
#pragma once
#include <cstdint>

#include "linear_cross_entropy/linear_cross_entropy.h"

namespace pf {

struct WeightedCrossEntropy {
  const float* logits;    // [tokens, vocabulary]
  const int64_t* labels;  // [tokens]
  const float* weights;   // [tokens]; null for 1
  float* losses;          // [tokens] unweighted; 0 where the label is ignore_index
  float* grad_logits;     // of sum(weights losses), [tokens, vocabulary]; may be logits; null where not wanted
  int64_t ignore_index;
  int64_t tokens, vocabulary;
};

using WeightedCrossEntropyForm = CrossEntropyStatus (*)(const WeightedCrossEntropy&, int threads);

}  // namespace pf
