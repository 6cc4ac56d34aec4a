#include "fused_draw/fused_draw.h"

namespace pf::PF_ISA {
ComomentsStatus fused_draw(const PerSampleLangevinStep&, const ComomentsUpdate&, int) { return ComomentsStatus::done; }
}
