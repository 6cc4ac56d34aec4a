// What per_sample_langevin_step does to one parameter: the same operations in the same order for every form.
#pragma once
#include <cmath>

#include "core/platform.h"
#include "per_sample_langevin_step/per_sample_langevin_step.h"

namespace pf {

// The numbers of a chain that a step uses at each of its parameters.
struct PerSampleChain {
  float n_beta, localization, lr, drift_scale, noise_scale;
  float own_noise;  // what a unit of gradient variance already adds to the parameter's
};

PF_INLINE PerSampleChain per_sample_chain(const PerSampleLangevinStep& op, int64_t chain) {
  const float lr = op.lr[chain];
  const double push = 0.5 * double(lr) * double(op.n_beta[chain]);
  return {op.n_beta[chain], op.localization[chain], lr, -0.5f * lr, op.noise_scale[chain],
          float(push * push * (1.0 - op.sampled_fraction) / double(op.batch))};
}

// Sums over the samples of a batch are of d = g - first, which keeps the variance of a large mean exact.
PF_INLINE void add_sample(float g, float first, float& sum, float& squares) {
  const float d = g - first;
  sum += d;
  squares = fma(d, d, squares);
}

struct Moments {
  float mean, variance;  // the unbiased one
};

PF_INLINE Moments moments(float first, float sum, float squares, float batch) {
  const float shift = sum / batch;
  const float spread = fma(-shift, sum, squares);
  return {first + shift, (spread < 0.0f ? 0.0f : spread) / (batch - 1.0f)};
}

PF_INLINE float per_sample_rule(const PerSampleChain& c, float w, const Moments& g, float w_star, float xi) {
  const float drift = fma(c.n_beta, g.mean, c.localization * (w - w_star));
  const float injected = fma(-c.own_noise, g.variance, c.lr);
  return fma(c.noise_scale * std::sqrt(injected < 0.0f ? 0.0f : injected), xi, fma(c.drift_scale, drift, w));
}

// Of sums over a chain's parameters (McCandlish et al. 2018).
PF_INLINE double gradient_noise_scale(double variance, double squared_mean, double batch) {
  const double signal = squared_mean - variance / batch;
  return signal > 0.0 ? variance / signal : double(INFINITY);
}

}  // namespace pf
