// One draw: the losses and observables of where the chains are go into the totals, and the chains move on.
#pragma once
#include "comoments_update/comoments_update.h"
#include "per_sample_langevin_step/per_sample_langevin_step.h"

namespace pf {

// Touches nothing unless every group exists.
using FusedDrawForm = ComomentsStatus (*)(const PerSampleLangevinStep&, const ComomentsUpdate&, int threads);

}  // namespace pf
