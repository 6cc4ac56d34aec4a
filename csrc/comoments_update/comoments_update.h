// Running first and second moments of losses and observables, by group of chains, about fixed shifts.
// A call's products are summed in float over at most kBlockChains chains of a group at a time, in the order of the
// chains, and those sums added to totals in double: the shifts keep the values small, so that float loses nothing.
#pragma once
#include <cstdint>

namespace pf {

constexpr int64_t kBlockChains = 64;

struct ComomentsUpdate {
  const float* losses;             // [chains, losses]
  const float* observables;        // [chains, observables]
  const float* loss_shift;         // [losses]
  const float* observable_shift;   // [observables]
  const int64_t* groups;           // [chains] which group's totals a chain adds to
  double* count;                   // [groups]
  double* loss_sum;                // [groups, losses]             sum of l
  double* observable_sum;          // [groups, observables]        sum of phi
  double* cross;                   // [groups, observables, losses]       sum of phi l
  double* observable_square;       // [groups, observables, observables]  sum of phi phi'
  int64_t chains, loss_count, observable_count, group_count;
};

// The same with the losses as their own observables.
struct LossComomentsUpdate {
  const float* losses;      // [chains, losses]
  const float* loss_shift;  // [losses]
  const int64_t* groups;    // [chains]
  double* count;            // [groups]
  double* loss_sum;         // [groups, losses]
  double* loss_square;      // [groups, losses, losses]  sum of l l'
  int64_t chains, loss_count, group_count;
};

enum class ComomentsStatus : int { done = 0, bad_groups = 1 };

// Touch nothing unless every group exists.
using ComomentsUpdateForm = ComomentsStatus (*)(const ComomentsUpdate&, int threads);
using LossComomentsUpdateForm = ComomentsStatus (*)(const LossComomentsUpdate&, int threads);

}  // namespace pf
