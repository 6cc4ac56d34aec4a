#include "comoments_update/comoments_update.h"

#include "comoments_update/comoments_update_pieces.h"
#include "core/parallel.h"

namespace pf::PF_ISA {

ComomentsStatus comoments_update(const ComomentsUpdate& op, int threads) {
  if (!groups_exist(op.groups, op.chains, op.group_count)) return ComomentsStatus::bad_groups;
  const ComomentsPieces pieces(op);
  parallel_for(pieces.count(), threads, [&](int64_t piece) { pieces.run(piece); });
  return ComomentsStatus::done;
}

ComomentsStatus loss_comoments_update(const LossComomentsUpdate& op, int threads) {
  if (!groups_exist(op.groups, op.chains, op.group_count)) return ComomentsStatus::bad_groups;
  const Gathering gathering(op.groups, op.chains, op.group_count);
  const Products square(gathering, {op.losses, op.loss_shift, op.loss_count}, op.loss_sum, op.loss_square);
  parallel_for(square.count(), threads, [&](int64_t piece) { square.run(piece); });
  add_counts(gathering, op.count);
  return ComomentsStatus::done;
}

}  // namespace pf::PF_ISA
