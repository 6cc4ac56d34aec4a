// What one step does to one parameter: the same operations in the same order for every form of langevin_step.
#pragma once
#include <cmath>

#include "core/normal.h"
#include "core/platform.h"
#include "langevin_step/langevin_step.h"

namespace pf {

// The numbers of a chain that a step uses at each of its parameters.
struct LangevinChain {
  float n_beta, localization, lr;
  float drift_scale;  // of n_beta g + localization (w - w*)
  float noise_scale;  // of xi; for rmsprop of sqrt(lr_i) xi
  float keep;         // share of the memory that stays
  float fresh;        // rmsprop: weight of the new g^2
  float correction;   // rmsprop: 1 / (1 - decay^(step + 1)), or 1
  float stability;
};

// By squaring, in multiplications alone: no library's pow is the same everywhere.
PF_INLINE double power(double base, uint64_t exponent) {
  double result = 1.0;
  for (; exponent; exponent >>= 1) {
    if (exponent & 1) result *= base;
    base *= base;
  }
  return result;
}

PF_INLINE LangevinChain langevin_chain(const LangevinStep& op, int64_t chain, int64_t step) {
  const float lr = op.lr[chain];
  LangevinChain c{op.n_beta[chain], op.localization[chain], lr, -0.5f * lr, op.noise_scale[chain], 0.0f, 0.0f, 1.0f, 0.0f};
  const double constant = op.decay_friction_or_diffusion;
  switch (op.rule) {
    case LangevinRule::sgld:
      c.noise_scale *= std::sqrt(lr);
      break;
    case LangevinRule::rmsprop_bias_corrected:
      c.correction = float(1.0 / (1.0 - power(constant, uint64_t(step) + 1)));
      [[fallthrough]];
    case LangevinRule::rmsprop:
      c.keep = float(constant);
      c.fresh = float(1.0 - constant);
      c.stability = float(op.stability);
      break;
    case LangevinRule::sghmc:
      c.drift_scale = -lr;
      c.noise_scale *= std::sqrt(float(2.0 * constant) * lr);
      c.keep = float(1.0 - constant);
      break;
    case LangevinRule::sgnht:
      c.drift_scale = -lr;
      c.noise_scale *= std::sqrt(float(2.0 * constant) * lr);
      c.keep = fma(-op.thermostat[chain], lr, 1.0f);
      break;
  }
  return c;
}

// The new w; `memory` is v or p, and is moved on.
template <LangevinRule rule>
PF_INLINE float langevin_rule(const LangevinChain& c, float w, float g, float w_star, float xi, float& memory) {
  const float drift = fma(c.n_beta, g, c.localization * (w - w_star));
  if constexpr (rule == LangevinRule::sgld) {
    return fma(c.noise_scale, xi, fma(c.drift_scale, drift, w));
  } else if constexpr (rule == LangevinRule::rmsprop || rule == LangevinRule::rmsprop_bias_corrected) {
    memory = fma(c.fresh * g, g, c.keep * memory);
    const float lr = c.lr / (std::sqrt(memory * c.correction) + c.stability);
    return fma(c.noise_scale * std::sqrt(lr), xi, fma(-0.5f * lr, drift, w));
  } else {
    memory = fma(c.noise_scale, xi, fma(c.drift_scale, drift, c.keep * memory));
    return rule == LangevinRule::sghmc ? w + memory : fma(c.lr, memory, w);
  }
}

// The thermostat after a step of a row of that many parameters, `squared_momentum` being |p|^2.
PF_INLINE float warmer(const LangevinStep& op, int64_t chain, double squared_momentum, int64_t length) {
  return float(double(op.thermostat[chain]) + double(op.lr[chain]) * (squared_momentum / double(length) - 1.0));
}

// w inside the box about w*; NaN stays NaN.
PF_INLINE float into_box(float w, float w_star, float box) {
  const float low = w_star - box, high = w_star + box;
  w = w < low ? low : w;
  return w > high ? high : w;
}

PF_INLINE bool is_finite(float w) { return (as_int(w) & 0x7F800000) != 0x7F800000; }

}  // namespace pf
