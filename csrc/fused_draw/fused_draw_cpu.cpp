#include "fused_draw/fused_draw.h"

#include "comoments_update/comoments_update_pieces.h"
#include "core/parallel.h"
#include "per_sample_langevin_step/per_sample_pieces.h"

namespace pf::PF_ISA {

// One loop over the pieces of both: neither waits for the other's last.
ComomentsStatus fused_draw(const PerSampleLangevinStep& step, const ComomentsUpdate& comoments, int threads) {
  if (!groups_exist(comoments.groups, comoments.chains, comoments.group_count)) return ComomentsStatus::bad_groups;
  const ComomentsPieces totals(comoments);
  PerSamplePieces moves(step);
  parallel_for(moves.count() + totals.count(), threads, [&](int64_t i) {
    if (i < moves.count())
      moves.run(i);
    else
      totals.run(i - moves.count());
  });
  moves.finish();
  return ComomentsStatus::done;
}

}  // namespace pf::PF_ISA
