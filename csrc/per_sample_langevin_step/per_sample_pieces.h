// per_sample_langevin_step as pieces that threads take in any order, for itself and for fused_draw.
#pragma once
#include <algorithm>
#include <vector>

#include "core/bfloat16.h"
#include "core/noise_block.h"
#include "core/pieces.h"
#include "per_sample_langevin_step/per_sample_rule.h"

namespace pf::PF_ISA {

class PerSamplePieces {
 public:
  explicit PerSamplePieces(const PerSampleLangevinStep& op)
      : op_(op), pieces_(pieces_of_rows(op.chains, [&](int64_t) { return op.param_count; })), sums_(pieces_.size()) {}

  int64_t count() const { return int64_t(pieces_.size()); }

  void run(int64_t i) {
    const Piece& piece = pieces_[size_t(i)];
    for (int64_t at = piece.begin; at < piece.end; at += kStrip) {
      const int count = int(std::min<int64_t>(kStrip, piece.end - at));
      Strip strip;
      if (op_.grads_are_bfloat16)
        add_batch(static_cast<const uint16_t*>(op_.grads), piece.row, at, count, strip);
      else
        add_batch(static_cast<const float*>(op_.grads), piece.row, at, count, strip);
      step(piece.row, at, count, strip, sums_[size_t(i)]);
    }
  }

  // Once every piece has run.
  void finish() const {
    std::vector<Totals> chains(size_t(op_.chains));
    for (size_t i = 0; i < pieces_.size(); ++i) {
      chains[size_t(pieces_[i].row)].variance += sums_[i].variance.total();
      chains[size_t(pieces_[i].row)].squared_mean += sums_[i].squared_mean.total();
    }
    for (size_t chain = 0; chain < chains.size(); ++chain)
      op_.gradient_noise_scale[chain] =
          gradient_noise_scale(chains[chain].variance, chains[chain].squared_mean, double(op_.batch));
  }

 private:
  // As many parameters as have their sums in the first-level cache; long enough for memory to stream.
  static constexpr int kStrip = 1024;

  struct Strip {
    float first[kStrip], sum[kStrip], squares[kStrip];
  };

  struct Sums {
    PieceSum variance, squared_mean;
  };

  struct Totals {
    double variance = 0, squared_mean = 0;
  };

  static float widen(float number) { return number; }
  static float widen(uint16_t number) { return from_bfloat16(number); }

  // `samples` of them at once, in their order, so that the sums are loaded and stored once.
  template <int samples, class Number>
  void add_samples(const Number* grads, const float* weights, int count, Strip& strip) const {
    float rho[samples];
    for (int j = 0; j < samples; ++j) rho[j] = weights ? weights[j] : 1.0f;
    for (int i = 0; i < count; ++i) {
      float sum = strip.sum[i], squares = strip.squares[i];
      for (int j = 0; j < samples; ++j)
        add_sample(rho[j] * widen(grads[j * op_.param_count + i]), strip.first[i], sum, squares);
      strip.sum[i] = sum;
      strip.squares[i] = squares;
    }
  }

  template <class Number>
  void add_batch(const Number* grads, int64_t chain, int64_t at, int count, Strip& strip) const {
    grads += chain * op_.batch * op_.param_count + at;
    const float* const weights = op_.sample_weights ? op_.sample_weights + chain * op_.batch : nullptr;
    for (int i = 0; i < count; ++i) {
      strip.first[i] = (weights ? weights[0] : 1.0f) * widen(grads[i]);
      strip.sum[i] = strip.squares[i] = 0.0f;
    }
    int64_t sample = 1;
    for (; sample + 4 <= op_.batch; sample += 4)
      add_samples<4>(grads + sample * op_.param_count, weights ? weights + sample : nullptr, count, strip);
    for (; sample < op_.batch; ++sample)
      add_samples<1>(grads + sample * op_.param_count, weights ? weights + sample : nullptr, count, strip);
  }

  // While noise is made memory would rest: as many of the next strip's gradients as fit that time. Asking past the end
  // does no harm.
  void ask_for_next(int64_t chain, int64_t at) const {
    constexpr int kRows = 6;
    const int64_t size = op_.grads_are_bfloat16 ? 2 : 4;
    const char* const next = static_cast<const char*>(op_.grads) +
                             (chain * op_.batch * op_.param_count + at + kStrip) * size;
    for (int64_t row = 0; row < std::min<int64_t>(kRows, op_.batch); ++row)
      for (int64_t byte = 0; byte < kBlock * size; byte += 64)
        __builtin_prefetch(next + row * op_.param_count * size + byte);
  }

  void step(int64_t chain, int64_t at, int count, const Strip& strip, Sums& sums) const {
    const PerSampleChain constants = per_sample_chain(op_, chain);
    float* const params = op_.params + chain * op_.param_count + at;
    const float* const center = op_.center + (op_.center_rows == 1 ? 0 : chain) * op_.param_count + at;
    const uint64_t seed = uint64_t(*op_.seed), chain_id = uint64_t(op_.chain_ids[chain]), now = uint64_t(*op_.step);
    float xi[kBlock], mean[kBlock], variance[kBlock], one[kBlock];
    std::fill_n(one, kBlock, 1.0f);
    for (int begin = 0; begin < count; begin += kBlock) {
      const int block = std::min<int>(kBlock, count - begin);
      ask_for_next(chain, at + begin);
      fill_noise_block(seed, chain_id, now, uint64_t(at + begin) / 4, xi);
      for (int i = 0; i < block; ++i) {
        const int k = begin + i;
        const Moments g = moments(strip.first[k], strip.sum[k], strip.squares[k], float(op_.batch));
        params[k] = per_sample_rule(constants, params[k], g, center[k], xi[i]);
        mean[i] = g.mean;
        variance[i] = g.variance;
      }
      sums.squared_mean.add_products(mean, mean, block);
      sums.variance.add_products(variance, one, block);
    }
  }

  PerSampleLangevinStep op_;
  std::vector<Piece> pieces_;
  std::vector<Sums> sums_;
};

}  // namespace pf::PF_ISA
