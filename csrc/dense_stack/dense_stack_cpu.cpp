#include "dense_stack/dense_stack.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "core/exp.h"
#include "core/lanes.h"
#include "core/matrix_product.h"
#include "core/noise_block.h"
#include "core/parallel.h"
#include "dense_stack/dense_product.h"
#include "langevin_step/step_row.h"

namespace pf::PF_ISA {

namespace {

constexpr int64_t kColumns = 64;  // samples whose losses are made together
constexpr int64_t kRowsTogether = 4;  // chains that a thread takes at a time

// Samples run along rows of length `columns`: unit i of sample b is at [i * columns + b]. Turned, sample b's units are
// at [b * width + i], followed by a 1 and zeros, up to a multiple of the lanes.
class Model {
 public:
  Model(const DenseStack& stack, int64_t batch)
      : stack_(stack), batch_(batch), columns_(round_up(batch, kTileLanes)), full_(stack.params), grads_(stack.params) {
    int64_t widest = 0, most = 0;
    for (int64_t at = 0; at < stack.depth; ++at) {
      const DenseLayer& layer = stack.layers[at];
      widest = std::max({widest, layer.in, layer.out});
      most = std::max(most, (layer.transposed ? layer.in : layer.out) * turned_width(std::max(layer.in, layer.out)));
    }
    for (int64_t at = 0; at <= stack.depth; ++at) {
      const int64_t width = at < stack.depth ? stack.layers[at].in : stack.layers[at - 1].out;
      units_.emplace_back(width * columns_);
      before_.emplace_back(at && stack.layers[at - 1].activation == Activation::gelu ? width * columns_ : 1);
    }
    for (std::vector<float>* each : {&slope_, &slope_below_}) each->resize(size_t(widest * columns_));
    turned_.resize(size_t(batch * turned_width(widest)));
    product_.resize(size_t(most + turned_width(widest)));
    targets_.resize(size_t(output() * columns_));
    rho_.resize(size_t(columns_));
    samples_.resize(size_t(round_up(batch, kBlock)));
  }

  int64_t* samples() { return samples_.data(); }

  // The model's parameters with a chain's in their places.
  const float* parameters(int64_t chain, const float* row, int64_t length) {
    const int64_t first = stack_.coordinate_starts[chain];
    if (first < 0) return row;
    std::copy_n(stack_.base, stack_.params, full_.data());
    for (int64_t i = 0; i < length; ++i) full_[size_t(stack_.coordinates[first + i])] = row[i];
    return full_.data();
  }

  // The first `count` of samples() and what they should give.
  void take(int64_t count) {
    const int64_t in = stack_.layers[0].in, out = output();
    float* const inputs = units_[0].data();
    for (int64_t b = 0; b < count; ++b) {
      const int64_t sample = samples_[size_t(b)];
      const float* const from = stack_.inputs + sample * in;
      for (int64_t i = 0; i < in; ++i) inputs[i * columns_ + b] = from[i];
      if (stack_.targets)
        for (int64_t o = 0; o < out; ++o) targets_[size_t(o * columns_ + b)] = stack_.targets[sample * out + o];
      rho_[size_t(b)] = stack_.weights ? stack_.weights[sample] : 1.0f;
    }
  }

  // Outputs of the samples taken, in the last units.
  void forward(const float* parameters) {
    for (int64_t at = 0; at < stack_.depth; ++at) {
      const DenseLayer& layer = stack_.layers[at];
      float* const to = units_[size_t(at + 1)].data();
      const float* const bias = layer.bias < 0 ? nullptr : parameters + layer.bias;
      const Left weight = layer.transposed ? Left{parameters + layer.weight, 1, layer.out}
                                           : Left{parameters + layer.weight, layer.in, 1};
      small_product(weight, layer.out, layer.in, units_[size_t(at)].data(), columns_, columns_, bias, to, columns_);
      activate(layer.activation, to, before_[size_t(at + 1)].data(), layer.out * columns_);
    }
  }

  // Losses of the first `count` samples.
  void losses(int64_t count, float* to) {
    const int64_t out = output();
    const float* const z = units_.back().data();
    for (int64_t b = 0; b < count; ++b) {
      if (stack_.targets) {
        float sum = 0.0f;
        for (int64_t o = 0; o < out; ++o) {
          const float off = z[o * columns_ + b] - targets_[size_t(o * columns_ + b)];
          sum = fma(off, off, sum);
        }
        to[b] = 0.5f * sum;
      } else {
        float most = z[b];
        for (int64_t o = 1; o < out; ++o) most = greater(z[o * columns_ + b], most);
        float sum = 0.0f;
        for (int64_t o = 0; o < out; ++o) sum += exp(z[o * columns_ + b] - most);
        to[b] = std::log(sum) + (most - z[stack_.labels[samples_[size_t(b)]] * columns_ + b]);
      }
    }
  }

  // Adds the gradient of the mean of rho times loss over all samples taken to a chain's row.
  void add_gradient(const float* parameters, int64_t chain, float* row, int64_t length) {
    const int64_t first = stack_.coordinate_starts[chain];
    float* const grads = first < 0 ? row : grads_.data();
    if (first >= 0) std::fill_n(grads, stack_.params, 0.0f);
    slope_of_loss();
    for (int64_t at = stack_.depth - 1; at >= 0; --at) {
      const DenseLayer& layer = stack_.layers[at];
      const float* const a = units_[size_t(at)].data();
      slope_of_activation(layer.activation, units_[size_t(at + 1)].data(), before_[size_t(at + 1)].data(),
                          layer.out * columns_);
      if (layer.transposed) {
        turn(slope_.data(), layer.out, false);
        add_product(a, layer.in, layer.out, grads + layer.weight, nullptr);
        if (layer.bias >= 0) add_ones_times(layer.out, grads + layer.bias);
      } else {
        turn(a, layer.in, true);
        add_product(slope_.data(), layer.out, layer.in, grads + layer.weight,
                    layer.bias < 0 ? nullptr : grads + layer.bias);
      }
      if (at == 0) break;
      const Left weight = layer.transposed ? Left{parameters + layer.weight, layer.out, 1}
                                           : Left{parameters + layer.weight, 1, layer.in};
      small_product(weight, layer.in, layer.out, slope_.data(), columns_, columns_, nullptr, slope_below_.data(), columns_);
      std::swap(slope_, slope_below_);
    }
    if (first >= 0)
      for (int64_t i = 0; i < length; ++i) row[i] += grads[stack_.coordinates[first + i]];
  }

 private:
  const DenseStack& stack_;
  int64_t batch_, columns_;
  std::vector<std::vector<float>> units_, before_;  // of every layer: its inputs; what its activation was given
  std::vector<float> full_, grads_, slope_, slope_below_, turned_, product_, targets_, rho_;
  std::vector<int64_t> samples_;

  static int64_t turned_width(int64_t units) { return round_up(units + 1, kTileLanes); }
  int64_t output() const { return stack_.layers[stack_.depth - 1].out; }

  static void activate(Activation activation, float* z, float* before, int64_t count) {
    switch (activation) {
      case Activation::identity: break;
      case Activation::relu:
        for (int64_t i = 0; i < count; ++i) z[i] = z[i] < 0.0f ? 0.0f : z[i];
        break;
      case Activation::tanh:
        for (int64_t i = 0; i < count; ++i) z[i] = std::tanh(z[i]);
        break;
      case Activation::gelu:
        for (int64_t i = 0; i < count; ++i) {
          before[i] = z[i];
          z[i] = 0.5f * z[i] * (1.0f + std::erf(z[i] * 0.70710678f));
        }
        break;
    }
  }

  // slope *= the activation's slope.
  void slope_of_activation(Activation activation, const float* units, const float* before, int64_t count) {
    float* const slope = slope_.data();
    switch (activation) {
      case Activation::identity: break;
      case Activation::relu:
        for (int64_t i = 0; i < count; ++i) slope[i] = units[i] > 0.0f ? slope[i] : 0.0f;
        break;
      case Activation::tanh:
        for (int64_t i = 0; i < count; ++i) slope[i] *= fma(-units[i], units[i], 1.0f);
        break;
      case Activation::gelu:
        for (int64_t i = 0; i < count; ++i) {
          const float x = before[i];
          slope[i] *= fma(x * 0.39894228f, std::exp(-0.5f * x * x), 0.5f * (1.0f + std::erf(x * 0.70710678f)));
        }
        break;
    }
  }

  // Of the mean of rho times loss, by the outputs; 0 where no sample is.
  void slope_of_loss() {
    const int64_t out = output();
    const float* const z = units_.back().data();
    const float share = 1.0f / float(batch_);
    for (int64_t b = 0; b < batch_; ++b) rho_[size_t(b)] *= share;
    for (int64_t b = batch_; b < columns_; ++b) rho_[size_t(b)] = 0.0f;
    if (stack_.targets) {
      for (int64_t o = 0; o < out; ++o)
        for (int64_t b = 0; b < columns_; ++b) {
          const size_t at = size_t(o * columns_ + b);
          slope_[at] = (z[at] - targets_[at]) * rho_[size_t(b)];
        }
      return;
    }
    for (int64_t first = 0; first < columns_; first += kTileLanes) soft_max(z + first, slope_.data() + first, &rho_[size_t(first)]);
    for (int64_t b = 0; b < batch_; ++b)
      slope_[size_t(stack_.labels[samples_[size_t(b)]] * columns_ + b)] -= rho_[size_t(b)];
  }

  // Of kTileLanes samples: rho times the probabilities that the outputs stand for.
  void soft_max(const float* z, float* to, const float* rho) const {
    float most[kTileLanes], sum[kTileLanes] = {};
    std::copy_n(z, kTileLanes, most);
    for (int64_t o = 1; o < output(); ++o)
      for (int b = 0; b < kTileLanes; ++b) most[b] = greater(z[o * columns_ + b], most[b]);
    for (int64_t o = 0; o < output(); ++o)
      for (int b = 0; b < kTileLanes; ++b) {
        to[o * columns_ + b] = exp(z[o * columns_ + b] - most[b]);
        sum[b] += to[o * columns_ + b];
      }
    for (int b = 0; b < kTileLanes; ++b) sum[b] = rho[b] / sum[b];
    for (int64_t o = 0; o < output(); ++o)
      for (int b = 0; b < kTileLanes; ++b) to[o * columns_ + b] *= sum[b];
  }

  // turned_ = the units of all samples taken, with a 1 after them or not.
  void turn(const float* units, int64_t count, bool with_one) {
    const int64_t width = turned_width(count);
    for (int64_t b = 0; b < batch_; ++b) {
      float* const to = turned_.data() + b * width;
      for (int64_t i = 0; i < count; ++i) to[i] = units[i * columns_ + b];
      to[count] = with_one ? 1.0f : 0.0f;
      for (int64_t i = count + 1; i < width; ++i) to[i] = 0.0f;
    }
  }

  // to[r * columns + c] += sum over samples of left's unit r times turned unit c; ones[r] += that of the 1.
  void add_product(const float* left, int64_t rows, int64_t columns, float* to, float* ones) {
    const int64_t width = turned_width(columns);
    small_product({left, columns_, 1}, rows, batch_, turned_.data(), width, width, nullptr, product_.data(), width);
    for (int64_t r = 0; r < rows; ++r) {
      const float* const from = product_.data() + r * width;
      for (int64_t c = 0; c < columns; ++c) to[r * columns + c] += from[c];
      if (ones) ones[r] += from[columns];
    }
  }

  // to[c] += sum over samples of turned unit c.
  void add_ones_times(int64_t columns, float* to) {
    const float one = 1.0f;
    const int64_t width = turned_width(columns);
    small_product({&one, 0, 0}, 1, batch_, turned_.data(), width, width, nullptr, product_.data(), width);
    for (int64_t c = 0; c < columns; ++c) to[c] += product_[size_t(c)];
  }
};

void choose(int64_t* samples, int64_t batch, int64_t of, uint64_t seed, uint64_t replica, uint64_t step) {
  uint32_t words[kBlock];
  for (int64_t at = 0; at < batch; at += kBlock) {
    fill_words_block(Stream::minibatch, seed, replica, step, uint64_t(at) / 4, words);
    for (int i = 0; i < kBlock; ++i) samples[at + i] = int64_t(uint64_t(words[i]) * uint64_t(of) >> 32);
  }
}

// Body(model, chain) for every chain, each thread with a model of its own.
template <class Body>
void for_each_chain(const DenseStack& stack, int64_t batch, int64_t chains, int threads, const Body& body) {
  const int64_t together = std::max<int64_t>(1, std::min(kRowsTogether, chains / threads));
  const int workers = int(std::min<int64_t>(threads, divide_up(chains, together)));
  std::vector<std::unique_ptr<Model>> models{size_t(workers)};
  parallel_for_workers(divide_up(chains, together), workers, [&](int64_t first, int64_t worker) {
    std::unique_ptr<Model>& model = models[size_t(worker)];
    if (!model) model = std::make_unique<Model>(stack, batch);
    for (int64_t chain = first * together; chain < std::min(chains, (first + 1) * together); ++chain) body(*model, chain);
  });
}

}  // namespace

void dense_losses(const DenseLosses& op, int threads) {
  const int64_t batch = std::min(kColumns, op.stack.samples);
  for_each_chain(op.stack, batch, op.chains, threads, [&](Model& model, int64_t chain) {
    const float* const row = op.rows + op.row_starts[chain];
    const float* const parameters = model.parameters(chain, row, op.row_starts[chain + 1] - op.row_starts[chain]);
    for (int64_t first = 0; first < op.stack.samples; first += batch) {
      const int64_t count = std::min(batch, op.stack.samples - first);
      for (int64_t b = 0; b < count; ++b) model.samples()[b] = first + b;
      model.take(count);
      model.forward(parameters);
      model.losses(count, op.losses + chain * op.stride + first);
    }
  });
}

void dense_steps(const DenseSteps& op, int threads) {
  for_each_chain(op.stack, op.batch, op.op.chains, threads, [&](Model& model, int64_t chain) {
    if (op.op.lr[chain] == 0.0f) return;
    LangevinStep now = op.op;
    int64_t step = *op.op.step;
    now.step = &step;
    const int64_t start = now.row_starts[chain], length = now.row_starts[chain + 1] - start;
    float* const grads = static_cast<float*>(now.grads) + start;
    const int64_t last = step + op.steps;
    do {
      choose(model.samples(), op.batch, op.stack.samples, uint64_t(*now.seed), uint64_t(op.replicas[chain]), uint64_t(step));
      model.take(op.batch);
      const float* const parameters = model.parameters(chain, now.params + start, length);
      model.forward(parameters);
      model.add_gradient(parameters, chain, grads, length);
      if (op.steps) step_row(now, chain);
    } while (++step < last);
  });
}

}  // namespace pf::PF_ISA
