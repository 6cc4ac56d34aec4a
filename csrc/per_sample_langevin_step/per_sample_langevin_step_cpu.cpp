#include "core/parallel.h"
#include "per_sample_langevin_step/per_sample_pieces.h"

namespace pf::PF_ISA {

void per_sample_langevin_step(const PerSampleLangevinStep& op, int threads) {
  PerSamplePieces pieces(op);
  parallel_for(pieces.count(), threads, [&](int64_t i) { pieces.run(i); });
  pieces.finish();
}

}  // namespace pf::PF_ISA
