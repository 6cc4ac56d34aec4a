// One SGLD step from per-sample gradients, whose own noise is taken off what is injected (Welling & Teh 2011, section
// 4; Ahn et al. 2012). With the mean g and the unbiased variance s2 of the m weighted gradients rho_j g_j of a chain:
//   w <- w - (lr/2) (n_beta g + localization (w - w*)) + noise_scale sqrt(max(0, lr - c)) xi
//   c = (lr/2)^2 n_beta^2 (1 - sampled_fraction) s2 / m
#pragma once
#include <cstdint>

namespace pf {

struct PerSampleLangevinStep {
  float* params;                // [chains, params]
  const void* grads;            // [chains, batch, params]; float, or bfloat16
  const float* sample_weights;  // rho [chains, batch]; null for 1
  const float* center;          // [chains, params], or [1, params] for all
  const float* lr;              // [chains]
  const float* n_beta;          // [chains]
  const float* localization;    // [chains]
  const float* noise_scale;     // [chains]
  const int64_t* chain_ids;     // [chains]
  const int64_t* seed;
  const int64_t* step;
  double* gradient_noise_scale; // [chains] sum(s2) / (|g|^2 - sum(s2) / m), infinite where that is not positive
  double sampled_fraction;      // m / n where samples are drawn without replacement, else 0
  int grads_are_bfloat16;
  int64_t chains, batch, param_count, center_rows;
};

// `batch` is at least 2. Nothing else can go wrong, so there is no status.
using PerSampleLangevinStepForm = void (*)(const PerSampleLangevinStep&, int threads);

}  // namespace pf
