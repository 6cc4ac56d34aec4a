// The table of CPU kernels. Every *_cpu.cpp is compiled once per instruction set, in a namespace named after it
// (PF_ISA, set by the build); one row of the table is chosen at run time.
#pragma once

#include "comoments_update/comoments_update.h"
#include "langevin_step/langevin_step.h"

namespace pf {

struct CpuForms {
  const char* isa;
  LangevinStepForm langevin_step;
  ComomentsUpdateForm comoments_update;
};

#define PF_DECLARE_FORMS(isa)                                 \
  namespace isa {                                             \
  LangevinStepStatus langevin_step(const LangevinStep&, int); \
  ComomentsStatus comoments_update(const ComomentsUpdate&, int); \
  }
PF_DECLARE_FORMS(baseline)
PF_DECLARE_FORMS(avx2)
PF_DECLARE_FORMS(avx512)
#undef PF_DECLARE_FORMS

}  // namespace pf
