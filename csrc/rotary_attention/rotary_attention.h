// Causal softmax attention of rotated queries and keys (rotary positions: arXiv:2104.09864), and its gradient.
#pragma once
#include <cstdint>

namespace pf {

struct RotaryAttention {
  const float* qkv;  // [batch, length, 3, heads, width]
  const float* cos;  // [length, width]
  const float* sin;  // [length, width]
  float* mixed;      // [batch, length, heads, width]
  float* log_sums;   // log of the sum of the exponentials of a query's scores, [batch, heads, length]
  int64_t batch, length, heads, width;
};

struct RotaryAttentionGradient {
  const float* qkv;         // as above
  const float* cos;
  const float* sin;
  const float* mixed;       // what rotary_attention made of them
  const float* log_sums;
  const float* grad_mixed;  // [batch, length, heads, width]
  float* grad_qkv;          // [batch, length, 3, heads, width]
  int64_t batch, length, heads, width;
};

using RotaryAttentionForm = void (*)(const RotaryAttention&, int threads);
using RotaryAttentionGradientForm = void (*)(const RotaryAttentionGradient&, int threads);

}  // namespace pf
