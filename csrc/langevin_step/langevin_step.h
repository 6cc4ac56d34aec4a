// One SGLD step (Welling & Teh 2011) on every chain of a bank:
//   w <- w - (lr/2) (n_beta g + localization (w - w*)) + noise_scale sqrt(lr) xi
// and g <- 0, ready for the next backward pass to accumulate into.
#pragma once
#include <cstdint>

namespace pf {

struct LangevinStep {
  float* params;                 // all chains' rows, one after another
  float* grads;                  // same places
  const float* center;           // w*, as rows that chains may share
  const int64_t* row_starts;     // [chains + 1] first parameter of each chain's row
  const int64_t* center_starts;  // [chains] first parameter of each chain's w*
  const float* lr;               // [chains]
  const float* n_beta;           // [chains]
  const float* localization;     // [chains]
  const float* noise_scale;      // [chains] 1; -1 for the second of an antithetic pair
  const int64_t* chain_ids;      // [chains] which noise a chain draws
  int64_t chains;
  int64_t param_count;           // in params and grads
  int64_t center_count;          // in center
  const int64_t* seed;           // seed and step stay in memory, where a captured launch can find their new values
  const int64_t* step;
};

enum class LangevinStepStatus : int { done = 0, bad_row_starts = 1, bad_center_starts = 2 };

// Touches nothing unless every row lies within params and every w* within center.
using LangevinStepForm = LangevinStepStatus (*)(const LangevinStep&, int threads);

}  // namespace pf
