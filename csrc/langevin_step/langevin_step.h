// One sampler step on every chain of a bank, and g <- 0, ready for the next backward pass to accumulate into.
// With the drift D = n_beta g + localization (w - w*), s = noise_scale and standard normals xi:
//   sgld     w <- w - (lr/2) D + s sqrt(lr) xi                                          Welling & Teh 2011
//   rmsprop  v <- decay v + (1 - decay) g^2, lr_i = lr / (sqrt(v) + stability), then sgld with lr_i; the form
//            rmsprop_bias_corrected divides v by 1 - decay^(step + 1) first             Li et al. 2016
//   sghmc    p <- p - friction p - lr D + s sqrt(2 friction lr) xi, w <- w + p          Chen et al. 2014
//   sgnht    p <- p - thermostat lr p - lr D + s sqrt(2 diffusion lr) xi, w <- w + lr p,
//            thermostat <- thermostat + lr (|p|^2 / params - 1)                         Ding et al. 2014
// Then w <- min(max(w, w* - box), w* + box), where there is a box.
#pragma once
#include <cstdint>

namespace pf {

enum class LangevinRule : int { sgld = 0, rmsprop = 1, rmsprop_bias_corrected = 2, sghmc = 3, sgnht = 4 };

// Rows of `statistics`: of g and w - w* before the step, and whether every new w is finite (1 or 0).
enum class StepStatistic : int { squared_gradient = 0, squared_distance = 1, gradient_dot_distance = 2, finite = 3 };
constexpr int kStepStatistics = 4;

struct LangevinStep {
  float* params;                 // all chains' rows, one after another
  void* grads;                   // same places; float, or bfloat16
  const float* center;           // w*, as rows that chains may share
  const int64_t* row_starts;     // [chains + 1] first parameter of each chain's row
  const int64_t* center_starts;  // [chains] first parameter of each chain's w*
  const float* lr;               // [chains]
  const float* n_beta;           // [chains]
  const float* localization;     // [chains]
  const float* noise_scale;      // [chains] 1; -1 for the second of an antithetic pair
  const int64_t* chain_ids;      // [chains] which noise a chain draws
  const int64_t* seed;           // seed and step stay in memory, where a captured launch can find their new values
  const int64_t* step;
  float* memory;                 // params' places: v (rmsprop) or p (sghmc, sgnht); null for sgld
  float* thermostat;             // [chains] sgnht; else null
  const float* box;              // [chains] half width of the box; null for none
  uint16_t* shadow;              // params' places: bfloat16 of the new w; null for none
  double* statistics;            // [kStepStatistics, chains]; null for none
  LangevinRule rule;
  double decay_friction_or_diffusion;
  double stability;              // rmsprop
  int grads_are_bfloat16;
  int64_t chains;
  int64_t param_count;           // in params and grads
  int64_t center_count;          // in center
};

enum class LangevinStepStatus : int { done = 0, bad_row_starts = 1, bad_center_starts = 2 };

// Touches nothing unless every row lies within params and every w* within center.
using LangevinStepForm = LangevinStepStatus (*)(const LangevinStep&, int threads);

}  // namespace pf
