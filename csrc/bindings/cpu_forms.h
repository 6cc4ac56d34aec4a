// The table of CPU kernels. Every *_cpu.cpp is compiled once per instruction set, in a namespace named after it
// (PF_ISA, set by the build); one row of the table is chosen at run time.
#pragma once

#include "dense_stack/dense_stack.h"
#include "fused_draw/fused_draw.h"
#include "langevin_step/langevin_step.h"
#include "linear_cross_entropy/linear_cross_entropy.h"
#include "normal/normal.h"
#include "rotary_attention/rotary_attention.h"
#include "weighted_cross_entropy/weighted_cross_entropy.h"

namespace pf {

struct CpuForms {
  const char* isa;
  LangevinStepForm langevin_step;
  PerSampleLangevinStepForm per_sample_langevin_step;
  ComomentsUpdateForm comoments_update;
  LossComomentsUpdateForm loss_comoments_update;
  FusedDrawForm fused_draw;
  LinearCrossEntropyForm linear_cross_entropy;
  WeightedCrossEntropyForm weighted_cross_entropy;
  RotaryAttentionForm rotary_attention;
  RotaryAttentionGradientForm rotary_attention_gradient;
  NormalForm normal;
  DenseLossesForm dense_losses;
  DenseStepsForm dense_steps;
  DenseDrawsForm dense_draws;
};

#define PF_DECLARE_FORMS(isa)                                                                   \
  namespace isa {                                                                               \
  LangevinStepStatus langevin_step(const LangevinStep&, int);                                   \
  void per_sample_langevin_step(const PerSampleLangevinStep&, int);                             \
  ComomentsStatus comoments_update(const ComomentsUpdate&, int);                                \
  ComomentsStatus loss_comoments_update(const LossComomentsUpdate&, int);                       \
  ComomentsStatus fused_draw(const PerSampleLangevinStep&, const ComomentsUpdate&, int);        \
  CrossEntropyStatus linear_cross_entropy(const LinearCrossEntropy&, int);                      \
  CrossEntropyStatus weighted_cross_entropy(const WeightedCrossEntropy&, int);                  \
  void rotary_attention(const RotaryAttention&, int);                                           \
  void rotary_attention_gradient(const RotaryAttentionGradient&, int);                          \
  void normal(const Normal&, int);                                                              \
  void dense_losses(const DenseLosses&, int);                                                   \
  void dense_steps(const DenseSteps&, int);                                                     \
  void dense_draws(const DenseDraws&, int);                                                     \
  constexpr CpuForms forms = {#isa,                  langevin_step,        per_sample_langevin_step, \
                              comoments_update,      loss_comoments_update, fused_draw,          \
                              linear_cross_entropy,  weighted_cross_entropy, rotary_attention,   \
                              rotary_attention_gradient, normal,                                    \
                              dense_losses,          dense_steps,            dense_draws};       \
  }
PF_DECLARE_FORMS(baseline)
PF_DECLARE_FORMS(avx2)
PF_DECLARE_FORMS(avx512)
#undef PF_DECLARE_FORMS

}  // namespace pf
