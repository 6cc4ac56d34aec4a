#include "normal/normal.h"

#include <cstring>
#include <vector>

#include "core/noise_block.h"
#include "core/parallel.h"
#include "core/pieces.h"

namespace pf::PF_ISA {

void normal(const Normal& op, int threads) {
  const std::vector<Piece> pieces = pieces_of_rows(op.chains, [&](int64_t) { return op.param_count; });
  parallel_for(int64_t(pieces.size()), threads, [&](int64_t i) {
    const Piece& piece = pieces[size_t(i)];
    float xi[kBlock];
    for (int64_t at = piece.begin; at < piece.end; at += kBlock) {
      fill_noise_block(uint64_t(*op.seed), uint64_t(op.chain_ids[piece.row]), uint64_t(*op.step), uint64_t(at) / 4, xi);
      const size_t count = size_t(std::min<int64_t>(kBlock, piece.end - at));
      std::memcpy(op.out + piece.row * op.param_count + at, xi, count * sizeof(float));
    }
  });
}

}  // namespace pf::PF_ISA
