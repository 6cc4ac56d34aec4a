// Cross entropy of the logits h U' of each token against its label, and the gradient of the weighted sum of losses,
// without the logits ever being held. A part of the logits may be known beforehand: h U' + offset_scale offset.
#pragma once
#include <cstdint>

namespace pf {

struct LinearCrossEntropy {
  const float* hidden;        // h [chains, tokens, width]
  const float* unembedding;   // U [unembeddings, vocabulary, width]; unembeddings is 1 (shared) or chains
  const int64_t* labels;      // [chains, tokens]
  const float* weights;      // [chains, tokens]; null for 1
  const float* offset;        // [offsets, tokens, vocabulary]; offsets is 1 (shared) or chains; null for none
  const float* offset_scale;  // [chains, tokens]; null where offset is
  float* losses;              // [chains, tokens] unweighted; 0 where the label is ignore_index
  float* grad_hidden;         // of sum(weights losses), [chains, tokens, width]; null where not wanted
  float* grad_unembedding;    // likewise [unembeddings, vocabulary, width]; null where not wanted
  float* grad_offset_scale;   // likewise [chains, tokens]; null where not wanted
  int64_t ignore_index;
  int64_t chains, tokens, width, vocabulary, unembeddings, offsets;
};

enum class CrossEntropyStatus : int { done = 0, bad_labels = 1 };

// Touches nothing unless every label that is not ignore_index lies within the vocabulary.
using LinearCrossEntropyForm = CrossEntropyStatus (*)(const LinearCrossEntropy&, int threads);

}  // namespace pf
