#include "dense_stack/dense_stack.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "core/aligned.h"
#include "core/exp.h"
#include "core/lanes.h"
#include "core/matrix_product.h"
#include "core/noise_block.h"
#include "core/parallel.h"
#include "dense_stack/dense_product.h"
#include "dense_stack/sparse_features.h"
#include "langevin_step/step_row.h"
#include "per_sample_langevin_step/per_sample_rule.h"

namespace pf::PF_ISA {

namespace {

constexpr int64_t kColumns = 64;      // samples whose losses are made together
constexpr int64_t kItemsTogether = 4;  // chains, or groups of them, that a thread takes at a time
constexpr int64_t kPad = std::max<int64_t>(kTileLanes, kTurned);
static_assert(kSamplesTogether % kPad == 0);

int64_t padded(int64_t count) { return round_up(count, kPad); }
int64_t outputs(const DenseStack& stack) { return stack.layers[stack.depth - 1].out; }

// Autoencoders need no second copy of their inputs.
bool has_targets(const DenseStack& stack) { return stack.targets && stack.targets != stack.inputs; }

// Of units, so many samples.
int64_t columns_of(const DenseStack& stack, int64_t batch) {
  return stack.presence ? round_up(batch, kSamplesTogether) : padded(batch);
}

// Whether a stack is one linear map, of which the gradient of squared errors needs only the moments of a minibatch.
bool is_linear(const DenseStack& stack) {
  return stack.targets && std::all_of(stack.layers, stack.layers + stack.depth, [](const DenseLayer& layer) {
           return layer.activation == Activation::identity;
         });
}

// All samples as rows: inputs, a 1, and for linear stacks the targets; then zeros. None where samples are made.
class Table {
 public:
  Table(const DenseStack& stack, int threads)
      : in_(stack.layers[0].in), width_(padded(in_ + 1 + (is_linear(stack) ? outputs(stack) : 0))),
        rows_(size_t(stack.inputs ? stack.samples * width_ : 0)) {
    if (!stack.inputs) return;
    const int64_t out = outputs(stack);
    parallel_for(divide_up(stack.samples, kColumns), threads, [&](int64_t part) {
      for (int64_t s = part * kColumns; s < std::min(stack.samples, (part + 1) * kColumns); ++s) {
        float* const row = rows_.data() + s * width_;
        std::copy_n(stack.inputs + s * in_, in_, row);
        row[in_] = 1.0f;
        if (is_linear(stack)) std::copy_n(stack.targets + s * out, out, row + in_ + 1);
      }
    });
  }

  int64_t width() const { return width_; }
  Gathered rows(const int64_t* samples) const { return {rows_.data(), samples, width_}; }

 private:
  int64_t in_, width_;
  AlignedVector<float> rows_;
};

// All samples in blocks of `batch` whose losses are made together: units of the first layer, and what the last should
// give, one column a sample.
class Blocks {
 public:
  Blocks(const DenseStack& stack, int64_t batch, int threads)
      : stack_(stack), columns_(columns_of(stack, batch)), count_(divide_up(stack.samples, batch)),
        units_(size_t(count_ * stack.layers[0].in * columns_)),
        targets_(size_t(has_targets(stack) ? count_ * outputs(stack) * columns_ : 0)) {
    parallel_for(count_, threads, [&](int64_t block) {
      std::vector<int64_t> samples(size_t(columns_), block * batch);
      const int64_t in = stack.layers[0].in, out = outputs(stack), count = std::min(batch, stack.samples - block * batch);
      for (int64_t b = 0; b < count; ++b) samples[size_t(b)] += b;
      float* const units = units_.data() + block * in * columns_;
      if (stack.presence)
        sparse_features(stack.presence, in, uint64_t(stack.data_seed), samples.data(), count, units, columns_);
      for (int64_t b = 0; b < count; ++b) {
        const int64_t s = samples[size_t(b)];
        for (int64_t i = 0; !stack.presence && i < in; ++i) units[i * columns_ + b] = stack.inputs[s * in + i];
        for (int64_t o = 0; has_targets(stack) && o < out; ++o)
          targets_[size_t((block * out + o) * columns_ + b)] = stack.targets[s * out + o];
      }
    });
  }

  int64_t count() const { return count_; }
  const float* units(int64_t block) const { return units_.data() + block * stack_.layers[0].in * columns_; }
  const float* targets(int64_t block) const {
    return has_targets(stack_) ? targets_.data() + block * outputs(stack_) * columns_ : units(block);
  }

 private:
  const DenseStack& stack_;
  int64_t columns_, count_;
  AlignedVector<float> units_, targets_;
};

// Units of a layer are rows of length columns_, one column a sample, and after the last unit a row of ones: what a bias
// multiplies. Turned, each sample has a row of units.
class Model {
 public:
  Model(const DenseStack& stack, int64_t batch, bool keeps_slopes = false)
      : stack_(stack), batch_(batch), columns_(columns_of(stack, batch)), full_(size_t(stack.params)),
        grads_(size_t(stack.params)) {
    int64_t widest = 0, most = 0;
    for (int64_t at = 0; at < stack.depth; ++at) {
      const DenseLayer& layer = stack.layers[at];
      widest = std::max({widest, layer.in, layer.out});
      most = std::max(most, (layer.transposed ? layer.in : layer.out) * padded(std::max(layer.in, layer.out) + 1));
    }
    for (int64_t at = 0; at <= stack.depth; ++at) {
      const int64_t width = at < stack.depth ? stack.layers[at].in : outputs(stack);
      units_.emplace_back(size_t(padded(width + 1) * columns_));
      std::fill_n(units_.back().begin() + width * columns_, columns_, 1.0f);
      before_.emplace_back(at && stack.layers[at - 1].activation == Activation::gelu ? size_t(width * columns_) : 0);
    }
    for (AlignedVector<float>* each : {&slope_, &slope_below_}) each->resize(size_t(padded(widest + 1) * columns_));
    turned_.resize(size_t(columns_ * padded(widest + 1)));
    product_.resize(size_t(most + padded(widest + 1)));
    targets_.resize(size_t(outputs(stack) * columns_));
    rho_.resize(size_t(columns_));
    if (keeps_slopes) {
      for (int64_t at = 0; at < stack.depth; ++at) slopes_.emplace_back(slope_.size());
      for (AlignedVector<float>* each : {&left_, &right_}) each->resize(slope_.size());
      for (AlignedVector<float>* each : {&squares_, &row_squares_}) each->resize(size_t(stack.params));
    }
    samples_.resize(size_t(std::max(columns_, round_up(batch, kBlock))));
    first_units_ = units_[0].data(), shown_ = has_targets(stack) ? targets_.data() : first_units_;
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

  // All of a minibatch, samples(): from the table, or made.
  void take(const Table& table) {
    std::fill(samples_.begin() + batch_, samples_.end(), samples_[0]);  // whose columns are never summed
    if (stack_.presence) {
      sparse_features(stack_.presence, stack_.layers[0].in, uint64_t(stack_.data_seed), samples_.data(), batch_,
                      units_[0].data(), columns_);
    } else {
      inputs_ = table.rows(samples_.data());
      turn(inputs_, columns_, padded(stack_.layers[0].in + 1), units_[0].data(), columns_);
    }
    if (has_targets(stack_))
      for (int64_t b = 0; b < batch_; ++b)
        for (int64_t o = 0; o < outputs(stack_); ++o)
          targets_[size_t(o * columns_ + b)] = stack_.targets[samples_[size_t(b)] * outputs(stack_) + o];
    const float share = 1.0f / float(batch_);
    for (int64_t b = 0; b < batch_; ++b)
      rho_[size_t(b)] = stack_.weights ? share * stack_.weights[samples_[size_t(b)]] : share;
  }

  // A block of samples, for their losses alone.
  void take(const Blocks& blocks, int64_t block) {
    first_units_ = blocks.units(block), shown_ = blocks.targets(block);
    for (int64_t b = 0; b < batch_; ++b) samples_[size_t(b)] = block * batch_ + b;
  }

  // Outputs of the samples taken, in the last units.
  void forward(const float* parameters) {
    for (int64_t at = 0; at < stack_.depth; ++at) {
      const DenseLayer& layer = stack_.layers[at];
      float* const to = units_[size_t(at + 1)].data();
      const float* const bias = layer.bias < 0 ? nullptr : parameters + layer.bias;
      const float* const from = at == 0 ? first_units_ : units_[size_t(at)].data();
      small_product<1>(weight(parameters, layer), layer.out, layer.in, Right{from, columns_}, columns_, bias, to, columns_);
      activate(layer.activation, to, before_[size_t(at + 1)].data(), layer.out * columns_);
    }
  }

  // Losses of the first `count` samples.
  void losses(int64_t count, float* to) {
    const int64_t out = outputs(stack_);
    const float* const z = units_.back().data();
    if (!stack_.labels) {
      std::fill_n(to, count, 0.0f);
      for (int64_t o = 0; o < out; ++o) {
        const float *const found = z + o * columns_, *const wanted = shown_ + o * columns_;
        for (int64_t b = 0; b < count; ++b) {
          const float off = found[b] - wanted[b];
          to[b] = fma(off, off, to[b]);
        }
      }
      for (int64_t b = 0; b < count; ++b) to[b] *= 0.5f;
      return;
    }
    for (int64_t b = 0; b < count; ++b) {
      float most = z[b];
      for (int64_t o = 1; o < out; ++o) most = greater(z[o * columns_ + b], most);
      float sum = 0.0f;
      for (int64_t o = 0; o < out; ++o) sum += exp(z[o * columns_ + b] - most);
      to[b] = std::log(sum) + (most - z[stack_.labels[samples_[size_t(b)]] * columns_ + b]);
    }
  }

  // Adds the gradient of the mean of rho times loss over all samples taken to a chain's row.
  void add_gradient(const float* parameters, int64_t chain, float* row, int64_t length) {
    slope_of_loss();
    add_gradient_by_slope(parameters, chain, row, length);
  }

  // After add_gradient: the sums over samples of the squares of each one's own gradient of rho times loss, at a row's
  // coordinates. A weight that several layers share has the products of their gradients too.
  const float* squares(int64_t chain, int64_t length) {
    std::fill(squares_.begin(), squares_.end(), 0.0f);
    for (int64_t at = 0; at < stack_.depth; ++at)
      for (int64_t other = at; other < stack_.depth; ++other) {
        const DenseLayer &layer = stack_.layers[at], &second = stack_.layers[other];
        const float times = (at == other ? 1.0f : 2.0f) * float(batch_ * batch_);
        if (layer.weight == second.weight) add_squares(at, other, times);
        if (layer.bias >= 0 && layer.bias == second.bias)
          for (int64_t o = 0; o < layer.out; ++o) {
            float sum = 0.0f;
            for (int64_t b = 0; b < batch_; ++b)
              sum = fma(slopes_[size_t(at)][size_t(o * columns_ + b)], slopes_[size_t(other)][size_t(o * columns_ + b)], sum);
            squares_[size_t(layer.bias + o)] += times * sum;
          }
      }
    const int64_t first = stack_.coordinate_starts[chain];
    if (first < 0) return squares_.data();
    for (int64_t i = 0; i < length; ++i) row_squares_[size_t(i)] = squares_[size_t(stack_.coordinates[first + i])];
    return row_squares_.data();
  }

  // The same of a minibatch that `moments` are of, for a stack that is linear, A x + a. With u = (x, 1), C = (A, a) and
  // the means over samples M = rho u u^T and N = rho y u^T the gradient by C is C M - N. So C takes the place of the
  // outputs: this model's samples are the columns of the identity, the bias added to the last, of slope C M - N.
  void add_linear_gradient(const float* parameters, const float* moments, int64_t width, int64_t chain, float* row,
                           int64_t length) {
    const int64_t in = stack_.layers[0].in;
    for (int64_t at = 0; at < stack_.depth; ++at) {
      const DenseLayer& layer = stack_.layers[at];
      float* const to = units_[size_t(at + 1)].data();
      small_product<1>(weight(parameters, layer), layer.out, layer.in, Right{units_[size_t(at)].data(), columns_}, columns_,
                       nullptr, to, columns_);
      if (layer.bias >= 0)
        for (int64_t o = 0; o < layer.out; ++o) to[o * columns_ + in] += parameters[layer.bias + o];
    }
    small_product<1>(Left{units_.back().data(), columns_, 1}, outputs(stack_), in + 1, Right{moments, width}, columns_,
                     nullptr, slope_.data(), columns_);
    for (int64_t o = 0; o < outputs(stack_); ++o)
      for (int64_t i = 0; i <= in; ++i) slope_[size_t(o * columns_ + i)] -= moments[i * width + in + 1 + o];
    add_gradient_by_slope(parameters, chain, row, length);
  }

  // Makes the samples the columns of the identity, the last of them what a bias belongs to.
  void take_identity() {
    const int64_t in = stack_.layers[0].in;
    for (size_t at = 0; at < units_.size(); ++at) {
      const int64_t width = at < size_t(stack_.depth) ? stack_.layers[at].in : outputs(stack_);
      float* const ones = units_[at].data() + width * columns_;
      for (int64_t b = 0; b < columns_; ++b) ones[b] = b == in ? 1.0f : 0.0f;
    }
    for (int64_t i = 0; i < in; ++i) units_[0][size_t(i * columns_ + i)] = 1.0f;
  }

 private:
  const DenseStack& stack_;
  int64_t batch_, columns_;
  std::vector<AlignedVector<float>> units_, before_;  // of every layer: its inputs; what its activation was given
  std::vector<AlignedVector<float>> slopes_;          // and those of what it puts out before the activation, where kept
  AlignedVector<float> left_, right_, squares_, row_squares_;
  AlignedVector<float> full_, grads_, slope_, slope_below_, turned_, product_, targets_, rho_;
  std::vector<int64_t> samples_;
  Gathered inputs_{};         // the samples taken, where they are rows of a table
  const float* first_units_;  // those of the first layer
  const float* shown_;        // what the last should give

  static Left weight(const float* parameters, const DenseLayer& layer) {
    return layer.transposed ? Left{parameters + layer.weight, 1, layer.out} : Left{parameters + layer.weight, layer.in, 1};
  }

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

  // Of the mean of rho times loss, by the outputs. Columns after the last sample hold anything, and are never summed.
  void slope_of_loss() {
    const int64_t out = outputs(stack_);
    const float* const z = units_.back().data();
    if (!stack_.labels) {
      const float* const y = shown_;
      for (int64_t o = 0; o < out; ++o)
        for (int64_t b = 0; b < columns_; b += kTileLanes) {
          const int64_t at = o * columns_ + b;
          const tile::Lanes slope = (tile::load(z + at) - tile::load(y + at)) * tile::load(rho_.data() + b);
          std::memcpy(slope_.data() + at, &slope, sizeof slope);
        }
      return;
    }
    for (int64_t first = 0; first < columns_; first += kTileLanes)
      soft_max(z + first, slope_.data() + first, rho_.data() + first);
    for (int64_t b = 0; b < batch_; ++b)
      slope_[size_t(stack_.labels[samples_[size_t(b)]] * columns_ + b)] -= rho_[size_t(b)];
  }

  // Of kTileLanes samples: rho times the probabilities that the outputs stand for.
  void soft_max(const float* z, float* to, const float* rho) const {
    const int64_t out = outputs(stack_);
    float most[kTileLanes], sum[kTileLanes] = {};
    std::copy_n(z, kTileLanes, most);
    for (int64_t o = 1; o < out; ++o)
      for (int b = 0; b < kTileLanes; ++b) most[b] = greater(z[o * columns_ + b], most[b]);
    for (int64_t o = 0; o < out; ++o)
      for (int b = 0; b < kTileLanes; ++b) {
        to[o * columns_ + b] = exp(z[o * columns_ + b] - most[b]);
        sum[b] += to[o * columns_ + b];
      }
    for (int b = 0; b < kTileLanes; ++b) sum[b] = rho[b] / sum[b];
    for (int64_t o = 0; o < out; ++o)
      for (int b = 0; b < kTileLanes; ++b) to[o * columns_ + b] *= sum[b];
  }

  void add_gradient_by_slope(const float* parameters, int64_t chain, float* row, int64_t length) {
    const int64_t first = stack_.coordinate_starts[chain];
    float* const grads = first < 0 ? row : grads_.data();
    if (first >= 0) std::fill_n(grads, stack_.params, 0.0f);
    for (int64_t at = stack_.depth - 1; at >= 0; --at) {
      const DenseLayer& layer = stack_.layers[at];
      const float* const below = units_[size_t(at)].data();
      slope_of_activation(layer.activation, units_[size_t(at + 1)].data(), before_[size_t(at + 1)].data(),
                          layer.out * columns_);
      if (!slopes_.empty()) std::copy_n(slope_.begin(), layer.out * columns_, slopes_[size_t(at)].begin());
      // Weights and bias at once: the row of ones after the units below is what the bias multiplies.
      const int64_t units = layer.in + (layer.bias < 0 ? 0 : 1);
      int64_t to_bias, between;
      if (layer.transposed) {
        const int64_t width = multiply(below, units, layer.out, turned(slope_.data(), layer.out));
        add_product(layer.in, layer.out, width, grads + layer.weight);
        to_bias = layer.in * width, between = 1;
      } else {
        const int64_t width = at == 0 && inputs_.at ? multiply(slope_.data(), layer.out, units, inputs_)
                                                    : multiply(slope_.data(), layer.out, units, turned(below, layer.in));
        add_product(layer.out, layer.in, width, grads + layer.weight);
        to_bias = layer.in, between = width;
      }
      for (int64_t o = 0; layer.bias >= 0 && o < layer.out; ++o)
        grads[layer.bias + o] += product_[size_t(to_bias + o * between)];
      if (at == 0) break;
      const Left back = layer.transposed ? Left{parameters + layer.weight, layer.out, 1}
                                         : Left{parameters + layer.weight, 1, layer.in};
      small_product<1>(back, layer.in, layer.out, Right{slope_.data(), columns_}, columns_, nullptr, slope_below_.data(),
                       columns_);
      std::swap(slope_, slope_below_);
    }
    if (first >= 0)
      for (int64_t i = 0; i < length; ++i) row[i] += grads[stack_.coordinates[first + i]];
  }

  // Each sample's gradient by a weight [rows, columns] is the product of what one layer gives along rows (the slopes, or
  // the units below if the weight is transposed) and what it gives along columns (the other of the two).
  void add_squares(int64_t at, int64_t other, float times) {
    const DenseLayer &layer = stack_.layers[at], &second = stack_.layers[other];
    const auto of = [&](int64_t layer_at, bool units) { return units ? units_[size_t(layer_at)].data() : slopes_[size_t(layer_at)].data(); };
    const int64_t rows = layer.transposed ? layer.in : layer.out, columns = layer.transposed ? layer.out : layer.in;
    const auto products = [&](const float* a, const float* b, int64_t count, AlignedVector<float>& to) {
      for (int64_t i = 0; i < count * columns_; ++i) to[size_t(i)] = a[i] * b[i];
    };
    products(of(at, layer.transposed), of(other, second.transposed), rows, left_);
    products(of(at, !layer.transposed), of(other, !second.transposed), columns, right_);
    const int64_t width = multiply(left_.data(), rows, columns, turned(right_.data(), columns));
    for (int64_t r = 0; r < rows; ++r)
      for (int64_t c = 0; c < columns; ++c)
        squares_[size_t(layer.weight + r * columns + c)] += times * product_[size_t(r * width + c)];
  }

  Right turned(const float* units, int64_t count) {
    const int64_t width = padded(count + 1);
    turn(Right{units, columns_}, width, columns_, turned_.data(), width);
    return {turned_.data(), width};
  }

  // product_ = sums over samples of units on the left times those on the right; returns the length of its rows.
  template <class R>
  int64_t multiply(const float* left, int64_t rows, int64_t columns, R right) {
    const int64_t width = round_up(columns, kTileLanes);
    small_product<4>(Left{left, columns_, 1}, rows, batch_, right, width, nullptr, product_.data(), width);
    return width;
  }

  void add_product(int64_t rows, int64_t columns, int64_t width, float* to) const {
    for (int64_t r = 0; r < rows; ++r)
      for (int64_t c = 0; c < columns; ++c) to[r * columns + c] += product_[size_t(r * width + c)];
  }
};

// Means over samples of rho times the products of what their rows hold: those of (x, 1) with all.
class Moments {
 public:
  Moments(const DenseStack& stack, const Table& table, int64_t batch)
      : stack_(stack), table_(table), batch_(batch), units_(stack.layers[0].in + 1),
        scaled_(size_t(stack.weights ? batch * units_ : 0)), means_(size_t(units_ * table.width())) {}

  const float* of(const int64_t* samples) {
    const Gathered rows = table_.rows(samples);
    const int64_t width = table_.width();
    if (stack_.weights) {
      for (int64_t b = 0; b < batch_; ++b)
        for (int64_t i = 0; i < units_; ++i) scaled_[size_t(b * units_ + i)] = stack_.weights[samples[b]] * rows.row(b)[i];
      small_product<4>(Left{scaled_.data(), 1, units_}, units_, batch_, rows, width, nullptr, means_.data(), width);
    } else {
      small_product<4>(GatheredColumns{rows}, units_, batch_, rows, width, nullptr, means_.data(), width);
    }
    const float share = 1.0f / float(batch_);
    for (float& each : means_) each *= share;
    return means_.data();
  }

 private:
  const DenseStack& stack_;
  const Table& table_;
  int64_t batch_, units_;
  AlignedVector<float> scaled_, means_;
};

void choose(int64_t* samples, int64_t batch, int64_t of, uint64_t seed, uint64_t replica, uint64_t step) {
  uint32_t words[kBlock];
  for (int64_t at = 0; at < batch; at += kBlock) {
    fill_words_block(Stream::minibatch, seed, replica, step, uint64_t(at) / 4, words);
    for (int i = 0; i < kBlock; ++i) samples[at + i] = int64_t(uint64_t(words[i]) * uint64_t(of) >> 32);
  }
}

// A step of one chain from its mean gradients, which it leaves at 0, and the sums of their squares over `batch` samples.
void corrected_step(const LangevinStep& op, int64_t chain, int64_t batch, const float* squares) {
  PerSampleLangevinStep sampled{};
  sampled.lr = op.lr, sampled.n_beta = op.n_beta, sampled.localization = op.localization;
  sampled.noise_scale = op.noise_scale, sampled.batch = batch;
  const PerSampleChain constants = per_sample_chain(sampled, chain);
  const int64_t start = op.row_starts[chain], length = op.row_starts[chain + 1] - start;
  float* const w = op.params + start;
  float* const g = static_cast<float*>(op.grads) + start;
  const float* const center = op.center + op.center_starts[chain];
  float xi[kBlock];
  for (int64_t at = 0; at < length; at += kBlock) {
    fill_noise_block(uint64_t(*op.seed), uint64_t(op.chain_ids[chain]), uint64_t(*op.step), uint64_t(at) / 4, xi);
    for (int64_t i = at; i < std::min(length, at + kBlock); ++i) {
      w[i] = per_sample_rule(constants, w[i], pf::moments(0.0f, float(batch) * g[i], squares[i], float(batch)), center[i], xi[i - at]);
      g[i] = 0.0f;
    }
  }
}

// body(own, item) for every item; each thread makes its `own`, and takes a few items at a time.
template <class Own, class Make, class Body>
void for_each(int64_t items, int threads, const Make& make, const Body& body) {
  const int64_t together = std::max<int64_t>(1, std::min(kItemsTogether, items / threads));
  const int workers = int(std::min<int64_t>(threads, divide_up(items, together)));
  std::vector<std::unique_ptr<Own>> owns{size_t(workers)};
  parallel_for_workers(divide_up(items, together), workers, [&](int64_t first, int64_t worker) {
    std::unique_ptr<Own>& own = owns[size_t(worker)];
    if (!own) own = make();
    for (int64_t item = first * together; item < std::min(items, (first + 1) * together); ++item) body(*own, item);
  });
}

// So many samples' losses are made together.
int64_t evaluated_together(const DenseStack& stack) { return std::min(kColumns, stack.samples); }

// The losses of all samples, block after block.
class Evaluator {
 public:
  Evaluator(const DenseStack& stack, const Blocks& blocks)
      : stack_(stack), blocks_(blocks), model_(stack, evaluated_together(stack)) {}

  void losses(int64_t chain, const float* row, int64_t length, float* to) {
    const float* const parameters = model_.parameters(chain, row, length);
    const int64_t batch = evaluated_together(stack_);
    for (int64_t block = 0; block < blocks_.count(); ++block) {
      model_.take(blocks_, block);
      model_.forward(parameters);
      model_.losses(std::min(batch, stack_.samples - block * batch), to + block * batch);
    }
  }

 private:
  const DenseStack& stack_;
  const Blocks& blocks_;
  Model model_;
};

// Steps of chains, one chain at a time: the model on minibatches, or for linear stacks on the identity, with
// minibatches' moments.
class Stepper {
 public:
  Stepper(const DenseSteps& op, const Table& table)
      : op_(op), table_(table), units_(op.stack.layers[0].in + 1),
        by_moments_(is_linear(op.stack) && units_ < op.batch && !op.corrects_noise),
        model_(op.stack, by_moments_ ? units_ : op.batch, op.corrects_noise) {
    if (!by_moments_) return;
    model_.take_identity();
    moments_ = std::make_unique<Moments>(op.stack, table, op.batch);
    samples_.resize(size_t(round_up(op.batch, kBlock)));
  }

  // The steps from number `step` on; the first minibatch's gradients alone where there are none.
  void advance(int64_t chain, int64_t step) {
    LangevinStep now = op_.op;
    now.step = &step;
    const int64_t start = now.row_starts[chain], length = now.row_starts[chain + 1] - start;
    float* const grads = static_cast<float*>(now.grads) + start;
    int64_t* const samples = by_moments_ ? samples_.data() : model_.samples();
    const int64_t last = step + op_.steps;
    do {
      choose(samples, op_.batch, op_.stack.samples, uint64_t(*now.seed), uint64_t(op_.replicas[chain]), uint64_t(step));
      const float* const parameters = model_.parameters(chain, now.params + start, length);
      if (by_moments_) {
        model_.add_linear_gradient(parameters, moments_->of(samples), table_.width(), chain, grads, length);
      } else {
        model_.take(table_);
        model_.forward(parameters);
        model_.add_gradient(parameters, chain, grads, length);
      }
      if (op_.steps && op_.corrects_noise)
        corrected_step(now, chain, op_.batch, model_.squares(chain, length));
      else if (op_.steps)
        step_row(now, chain);
    } while (++step < last);
  }

 private:
  const DenseSteps& op_;
  const Table& table_;
  int64_t units_;
  bool by_moments_;
  Model model_;
  std::unique_ptr<Moments> moments_;
  std::vector<int64_t> samples_;
};

// Draws of chains, one chain at a time.
class Drawer {
 public:
  Drawer(const DenseDraws& op, const Table& table, const Blocks& blocks)
      : op_(op), stepper_(op.steps, table), evaluator_(op.evaluated, blocks), losses_(size_t(op.evaluated.samples)),
        observables_(size_t(op.comoments.observable_count)) {}

  void draw(int64_t chain) {
    const LangevinStep& moving = op_.steps.op;
    const int64_t start = moving.row_starts[chain], length = moving.row_starts[chain + 1] - start;
    const int64_t loss_count = op_.comoments.loss_count;
    const float* const row = moving.params + start;
    bool stopped = moving.lr[chain] == 0.0f;
    for (int64_t at = 0; at < op_.draws; ++at) {
      const int64_t place = at * moving.chains + chain;
      if (!stopped) {
        stepper_.advance(chain, *moving.step + at * op_.steps.steps);
        evaluator_.losses(chain, row, length, losses_.data());
        stopped = !observe();
      }
      if (stopped) std::fill(losses_.begin(), losses_.end(), NAN);
      if (op_.losses) std::copy_n(losses_.data(), loss_count, op_.losses + place * loss_count);
      op_.distance[place] = float(std::sqrt(squared_distance(row, moving.center + moving.center_starts[chain], length)));
      op_.phi[place] = stopped ? NAN : double(observables_[0]);
      if (!stopped) add_to(op_.comoments.groups[chain]);
    }
  }

 private:
  const DenseDraws& op_;
  Stepper stepper_;
  Evaluator evaluator_;
  AlignedVector<float> losses_, observables_;

  static double squared_distance(const float* row, const float* center, int64_t length) {
    double sum = 0.0;
    for (int64_t i = 0; i < length; ++i) sum += double(row[i] - center[i]) * double(row[i] - center[i]);
    return sum;
  }

  // Makes the observables of the losses; whether the chain is sound.
  bool observe() {
    bool finite = true;
    for (const float loss : losses_) finite &= is_finite(loss);
    double phi = 0.0;
    for (int64_t i = op_.phi_begin; i < op_.phi_end; ++i) phi += double(losses_[size_t(i)] - op_.reference[i]);
    observables_[0] = float(phi / double(op_.phi_end - op_.phi_begin));
    for (int64_t k = 1; k < op_.comoments.observable_count; ++k)
      observables_[size_t(k)] = losses_[size_t(k - 1)] - op_.reference[k - 1];
    return finite && !(std::abs(double(observables_[0])) > op_.limit);
  }

  // What comoments_update does with a chain of a group of its own.
  void add_to(int64_t group) {
    const ComomentsUpdate& to = op_.comoments;
    const int64_t n = to.loss_count, observables = to.observable_count;
    for (int64_t i = 0; i < n; ++i) losses_[size_t(i)] -= to.loss_shift[i];
    for (int64_t k = 0; k < observables; ++k) observables_[size_t(k)] -= to.observable_shift[k];
    const auto add = [](double* totals, const float* values, int64_t count, float times) {
      for (int64_t i = 0; i < count; ++i) totals[i] += double(times * values[i]);
    };
    to.count[group] += 1.0;
    add(to.loss_sum + group * n, losses_.data(), n, 1.0f);
    add(to.observable_sum + group * observables, observables_.data(), observables, 1.0f);
    for (int64_t k = 0; k < observables; ++k) {
      const int64_t row = group * observables + k;
      add(to.cross + row * n, losses_.data(), n, observables_[size_t(k)]);
      add(to.observable_square + row * observables, observables_.data(), observables, observables_[size_t(k)]);
    }
  }
};

}  // namespace

void dense_losses(const DenseLosses& op, int threads) {
  const Blocks blocks(op.stack, evaluated_together(op.stack), threads);
  for_each<Evaluator>(
      op.chains, threads, [&] { return std::make_unique<Evaluator>(op.stack, blocks); },
      [&](Evaluator& evaluator, int64_t chain) {
        evaluator.losses(chain, op.rows + op.row_starts[chain], op.row_starts[chain + 1] - op.row_starts[chain],
                         op.losses + chain * op.stride);
      });
}

void dense_steps(const DenseSteps& op, int threads) {
  const Table table(op.stack, threads);
  for_each<Stepper>(
      op.op.chains, threads, [&] { return std::make_unique<Stepper>(op, table); },
      [&](Stepper& stepper, int64_t chain) {
        if (op.op.lr[chain] != 0.0f) stepper.advance(chain, *op.op.step);
      });
}

// Chains of one group add to the same totals: they are one thread's.
void dense_draws(const DenseDraws& op, int threads) {
  const Table table(op.steps.stack, threads);
  const Blocks blocks(op.evaluated, evaluated_together(op.evaluated), threads);
  std::vector<std::vector<int64_t>> chains(size_t(op.comoments.group_count));
  for (int64_t chain = 0; chain < op.steps.op.chains; ++chain) chains[size_t(op.comoments.groups[chain])].push_back(chain);
  for_each<Drawer>(
      op.comoments.group_count, threads, [&] { return std::make_unique<Drawer>(op, table, blocks); },
      [&](Drawer& drawer, int64_t group) {
        for (const int64_t chain : chains[size_t(group)]) drawer.draw(chain);
      });
}

}  // namespace pf::PF_ISA
