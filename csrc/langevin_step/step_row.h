// One step on a piece of a row, and on a whole row: what langevin_step shares with the ops that call it within a loop.
#pragma once
#include <algorithm>
#include <cstdint>

#include "core/bfloat16.h"
#include "core/noise_block.h"
#include "core/pieces.h"
#include "langevin_step/langevin_rule.h"
#include "langevin_step/langevin_step.h"

namespace pf::PF_ISA {

struct PieceResult {
  double squared_gradient = 0, squared_distance = 0, gradient_dot_distance = 0, squared_momentum = 0;
  bool finite = true;
};

// At most a block of parameters of one chain; every pointer to the first of them.
struct Block {
  float* w;
  float* g;
  const float* w_star;
  const float* xi;
  float* memory;
  int count;
};

template <LangevinRule rule>
void update(const LangevinChain& chain, const Block& block) {
  for (int i = 0; i < block.count; ++i) {
    float none = 0.0f;
    float& memory = rule == LangevinRule::sgld ? none : block.memory[i];
    block.w[i] = langevin_rule<rule>(chain, block.w[i], block.g[i], block.w_star[i], block.xi[i], memory);
    block.g[i] = 0.0f;
  }
}

inline void update(LangevinRule rule, const LangevinChain& chain, const Block& block) {
  switch (rule) {
    case LangevinRule::sgld: return update<LangevinRule::sgld>(chain, block);
    case LangevinRule::rmsprop:
    case LangevinRule::rmsprop_bias_corrected: return update<LangevinRule::rmsprop>(chain, block);
    case LangevinRule::sghmc: return update<LangevinRule::sghmc>(chain, block);
    case LangevinRule::sgnht: return update<LangevinRule::sgnht>(chain, block);
  }
}

class Sums {
 public:
  void add(const Block& block) {
    float distance[kBlock];
    for (int i = 0; i < block.count; ++i) distance[i] = block.w[i] - block.w_star[i];
    squared_gradient_.add_products(block.g, block.g, block.count);
    squared_distance_.add_products(distance, distance, block.count);
    gradient_dot_distance_.add_products(block.g, distance, block.count);
  }

  void add_momentum(const Block& block) { squared_momentum_.add_products(block.memory, block.memory, block.count); }

  void look_for_infinities(const Block& block) {
    int32_t broken = 0;
    for (int i = 0; i < block.count; ++i) broken |= int32_t(!is_finite(block.w[i]));
    finite_ &= !broken;
  }

  PieceResult result() const {
    return {squared_gradient_.total(), squared_distance_.total(), gradient_dot_distance_.total(),
            squared_momentum_.total(), finite_};
  }

 private:
  PieceSum squared_gradient_, squared_distance_, gradient_dot_distance_, squared_momentum_;
  bool finite_ = true;
};

// Noise keeps the core so busy that memory falls behind unless asked ahead of time. Asking past the end does no harm.
inline void ask_for(const float* numbers) {
  constexpr int kLine = 16, kAhead = 8 * kBlock;
  for (int i = 0; i < kBlock; i += kLine) __builtin_prefetch(numbers + kAhead + i, 1);
}

inline PieceResult step_piece(const LangevinStep& op, const Piece& piece) {
  const int64_t row = op.row_starts[piece.row], center = op.center_starts[piece.row];
  const LangevinChain chain = langevin_chain(op, piece.row, *op.step);
  float xi[kBlock], wide[kBlock];
  Sums sums;
  for (int64_t at = piece.begin; at < piece.end; at += kBlock) {
    ask_for(op.params + row + at);
    ask_for(static_cast<float*>(op.grads) + row + at);
    const int count = int(std::min<int64_t>(kBlock, piece.end - at));
    const uint64_t seed = uint64_t(*op.seed), noise = uint64_t(op.chain_ids[piece.row]), step = uint64_t(*op.step);
    if (count > 2 * kLanes * lanes::kHalfGroups)
      fill_noise_block(seed, noise, step, uint64_t(at) / 4, xi);
    else
      fill_noise_block<lanes::kHalfGroups>(seed, noise, step, uint64_t(at) / 4, xi);
    Block block{op.params + row + at, wide, op.center + center + at, xi, op.memory ? op.memory + row + at : nullptr, count};
    if (op.grads_are_bfloat16) {
      uint16_t* const halves = static_cast<uint16_t*>(op.grads) + row + at;
      for (int i = 0; i < count; ++i) wide[i] = from_bfloat16(halves[i]);
      std::fill_n(halves, count, uint16_t{0});
    } else {
      block.g = static_cast<float*>(op.grads) + row + at;
    }
    if (op.statistics) sums.add(block);
    update(op.rule, chain, block);
    if (op.box)
      for (int i = 0; i < count; ++i) block.w[i] = into_box(block.w[i], block.w_star[i], op.box[piece.row]);
    if (op.shadow)
      for (int i = 0; i < count; ++i) op.shadow[row + at + i] = to_bfloat16(block.w[i]);
    if (op.thermostat) sums.add_momentum(block);
    if (op.statistics) sums.look_for_infinities(block);
  }
  return sums.result();
}

// All of a chain; without statistics.
inline void step_row(const LangevinStep& op, int64_t chain) {
  const int64_t length = op.row_starts[chain + 1] - op.row_starts[chain];
  double squared_momentum = 0.0;
  for (int64_t begin = 0; begin < length; begin += kPiece)
    squared_momentum += step_piece(op, {chain, begin, std::min(begin + kPiece, length)}).squared_momentum;
  if (op.thermostat && length > 0) op.thermostat[chain] = warmer(op, chain, squared_momentum, length);
}

}  // namespace pf::PF_ISA
