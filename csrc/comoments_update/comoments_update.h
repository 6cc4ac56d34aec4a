// Running first and second moments of losses and observables, by group of chains, about fixed shifts.
// Totals in double: sums of products of small differences lose everything in float.
#pragma once
#include <cstdint>

namespace pf {

struct ComomentsUpdate {
  const float* losses;             // [chains, losses]
  const float* observables;        // [chains, observables]
  const float* loss_shift;         // [losses]
  const float* observable_shift;   // [observables]
  const int64_t* groups;           // [chains] which group's totals a chain adds to
  int64_t chains, loss_count, observable_count, group_count;
  double* count;                   // [groups]
  double* loss_sum;                // [groups, losses]             sum of l
  double* observable_sum;          // [groups, observables]        sum of phi
  double* cross;                   // [groups, observables, losses]       sum of phi l
  double* observable_square;       // [groups, observables, observables]  sum of phi phi'
};

enum class ComomentsStatus : int { done = 0, bad_groups = 1 };

// Touches nothing unless every group exists.
using ComomentsUpdateForm = ComomentsStatus (*)(const ComomentsUpdate&, int threads);

}  // namespace pf
