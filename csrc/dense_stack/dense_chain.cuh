// What a block does for a chain of a dense stack: minibatch, forward, gradient and step, again and again, in shared
// memory. Units of a layer are rows of samples, so that threads read neighbours; products keep their sums in registers.
#pragma once
#include <cmath>
#include <cstdint>
#include <type_traits>

#include "core/block_sum.cuh"
#include "core/exp.h"
#include "core/four.cuh"
#include "core/noise.h"
#include "dense_stack/dense_plan.h"
#include "dense_stack/dense_stack.h"
#include "langevin_step/langevin_rule.h"
#include "per_sample_langevin_step/per_sample_rule.h"

namespace pf::cuda {

// A layer in few words.
struct DenseUnits {
  int in, out, weight, bias, transposed;
  int first;  // row of the first of its inputs among all units; its outputs come after them and a row of ones
  Activation activation;

  __device__ int outputs() const { return first + in + 1; }
};
static_assert(sizeof(DenseUnits) == 4 * kLayerNumbers);

// What a step of a chain uses at each of its parameters, and where its block adds up.
template <int threads>
struct DenseNumbers {
  LangevinChain chain;
  PerSampleChain sampled;
  double partial[threads / 32][1];
};
static_assert(sizeof(DenseNumbers<kManyWarps>) <= 4 * kDenseNumbers);

inline __device__ float* shared_memory() {
  extern __shared__ float4 dense_memory[];
  return reinterpret_cast<float*>(dense_memory);
}

// Of samples that are made here every unit makes the words of four, of which it needs one: see sparse_features.h.
inline __device__ float input(const DenseStack& stack, int64_t sample, int unit, int width) {
  if (!stack.presence) return stack.inputs[sample * width + unit];
  const Words4 words = philox4x32(counter(Stream::data, uint64_t(sample), 0, uint64_t(unit / 4)),
                                  uint32_t(stack.data_seed), uint32_t(uint64_t(stack.data_seed) >> 32));
  const uint32_t word = unit % 4 == 0 ? words.x : unit % 4 == 1 ? words.y : unit % 4 == 2 ? words.z : words.w;
  const float u = float(word >> 8) * 0x1p-24f, presence = stack.presence[unit];
  return u < presence ? __fdiv_rn(u, presence) : 0.0f;
}
inline __device__ float target(const DenseStack& stack, int64_t sample, int unit, int width) {
  return stack.targets[sample * width + unit];
}

// A slope by what an activation gave, `unit`, taken to what it was given; for gelu later, by back_through_gelu.
inline __device__ float back_through(Activation activation, float slope, float unit) {
  switch (activation) {
    case Activation::relu: return unit > 0.0f ? slope : 0.0f;
    case Activation::tanh: return slope * fma(-unit, unit, 1.0f);
    default: return slope;
  }
}

// Element (i, k) is at[i * row + k * column].
struct DenseLeft {
  const float* at;
  int row, column;
};

// How neighbours in memory follow one another in a matrix, if four can be had at once.
enum class DenseRun { none, along_rows, along_depth };

// Rows of samples, or products with those of other rows.
template <bool multiplied>
struct DenseRows {
  const float* at;
  const float* by;

  __device__ void load(int from, float (&to)[4]) const {
    load_four_aligned(at + from, to);
    if constexpr (multiplied) {
      float four[4];
      load_four_aligned(by + from, four);
#pragma unroll
      for (int s = 0; s < 4; ++s) to[s] *= four[s];
    }
  }
};

// `threads` of a block; in_shared where the plan needs no workspace. All threads come to every function together.
template <DenseUse use, int threads, bool in_shared>
class DenseChain {
 public:
  static constexpr int kThreads = threads;

  __device__ DenseChain(const DenseStack& stack, const DensePlan& plan, float* workspace)
      : stack_(stack), plan_(plan), workspace_(workspace + blockIdx.x * plan.workspace), across_(plan.columns / 4),
        row_(int(threadIdx.x) / across_), four_(int(threadIdx.x) % across_), down_(threads / across_),
        along_(threads % across_) {
    if (threadIdx.x == 0) {
      int first = 0;
      for (int at = 0; at < depth(); ++at) {
        const DenseLayer& own = stack.layers[at];
        place<DenseUnits>(plan.layers)[at] = {int(own.in),         int(own.out), int(own.weight), int(own.bias),
                                              int(own.transposed), first,        own.activation};
        first += int(own.in) + 1;
      }
    }
    __syncthreads();
    for (int at = 0; at < depth(); ++at)
      for (int b = int(threadIdx.x); b < plan.columns; b += threads) units_of(layer(at).outputs() - 1)[b] = 1.0f;
  }

  // A chain's parameters in their places among the model's, and gradients of 0.
  __device__ void load(int64_t chain, const float* row, int length) {
    const int64_t first = stack_.coordinate_starts[chain];
    coordinates_ = first < 0 ? nullptr : stack_.coordinates + first;
    length_ = length;
    float* const own = parameters();
    __syncthreads();  // the chain before is done
    for (int i = int(threadIdx.x); i < int(stack_.params); i += threads) {
      if (coordinates_) own[i] = stack_.base[i];
      if constexpr (use != DenseUse::losses) gradients()[i] = 0.0f;
      if constexpr (use == DenseUse::corrected_steps) squares()[i] = 0.0f;
    }
    __syncthreads();
    for (int i = int(threadIdx.x); i < length; i += threads) own[place_of(i)] = row[i];
  }

  // The samples of some minibatches, those of the steps from `step` on.
  __device__ void choose(uint64_t seed, uint64_t replica, uint64_t step) const {
    const int fours = plan_.minibatch / 4;
    for (int at = int(threadIdx.x); at < plan_.minibatches * fours; at += threads) {
      const Words4 place = counter(Stream::minibatch, replica, step + uint64_t(at / fours), uint64_t(at % fours));
      const Words4 words = philox4x32(place, uint32_t(seed), uint32_t(seed >> 32));
      const uint32_t each[4] = {words.x, words.y, words.z, words.w};
#pragma unroll
      for (int i = 0; i < 4; ++i) samples()[4 * at + i] = uint32_t(uint64_t(each[i]) * uint64_t(stack_.samples) >> 32);
    }
  }

  // Inputs and targets of the samples sample_of(b) for b < count, and share times their weights; in later columns 0.
  template <class Samples>
  __device__ void take(const Samples& sample_of, int count, float share) const {
    const int in = layer(0).in, out = last().out;
    gather(in, count, [&](int b, int i) { return input(stack_, sample_of(b), i, in); }, units_of(0));
    if (!stack_.labels && !is_autoencoder())
      gather(out, count, [&](int b, int o) { return target(stack_, sample_of(b), o, out); }, slopes_of(depth() - 1));
    for (int b = int(threadIdx.x); b < plan_.columns; b += threads)
      rho()[b] = b >= count ? 0.0f : stack_.weights ? share * stack_.weights[sample_of(b)] : share;
    __syncthreads();
  }

  // Outputs of the samples taken, in the last units.
  __device__ void forward() const {
    for (int at = 0; at < depth(); ++at) {
      const DenseUnits own = layer(at);
      const float* const weight = parameters() + own.weight;
      const float least = own.activation == Activation::relu ? 0.0f : -INFINITY;
      float* const to = units_of(own.outputs());
      product(own.transposed ? DenseLeft{weight, 1, own.out} : DenseLeft{weight, own.in, 1}, own.out, own.in,
              units_of(own.first), own.bias < 0 ? nullptr : parameters() + own.bias, [&](int o, int b, float(&z)[4]) {
#pragma unroll
                for (int s = 0; s < 4; ++s) z[s] = z[s] < least ? least : z[s];
                store_four_aligned(z, to + o * plan_.stride + b);
              });
      __syncthreads();
      if (own.activation == Activation::tanh) {
        for_each_unit(own.out, [&](int here) { to[here] = std::tanh(to[here]); });
        __syncthreads();
      } else if (own.activation == Activation::gelu) {
        float* const before = before_of(own.outputs());
        for_each_unit(own.out, [&](int here) {
          const float z = before[here] = to[here];
          to[here] = 0.5f * z * (1.0f + std::erf(z * 0.70710678f));
        });
        __syncthreads();
      }
    }
  }

  // Losses of the first `count` samples.
  template <class Samples>
  __device__ void losses(const Samples& sample_of, int count, float* to) const {
    const int out = last().out, stride = plan_.stride;
    for (int b = int(threadIdx.x); b < count; b += threads) {
      const float* const z = units_of(last().outputs()) + b;
      if (!stack_.labels) {
        const float* const y = targets() + b;
        float sum = 0.0f;
        for (int o = 0; o < out; ++o) {
          const float off = z[o * stride] - y[o * stride];
          sum = fma(off, off, sum);
        }
        to[b] = 0.5f * sum;
      } else {
        const float most = greatest(z);
        float sum = 0.0f;
        for (int o = 0; o < out; ++o) sum += exp(z[o * stride] - most);
        to[b] = std::log(sum) + (most - z[int(stack_.labels[sample_of(b)]) * stride]);
      }
    }
    __syncthreads();
  }

  // Adds the gradient of the sum of rho times loss over the samples taken, the first `count` columns.
  template <class Samples>
  __device__ void add_gradient(const Samples& sample_of, int count) const {
    if (!stack_.labels)
      slope_of_squared_error();
    else
      slope_of_cross_entropy(sample_of, count);
    __syncthreads();
    for (int at = depth() - 1; at >= 0; --at) {
      const DenseUnits own = layer(at);
      float *const slope = slopes_of(at), *const to = gradients();
      if (own.activation == Activation::gelu) {
        back_through_gelu(own, slope);
        __syncthreads();
      }
      // Weights and bias at once: the row of ones after the units below is what the bias multiplies.
      sums_of_pairs<false>({slope, nullptr}, own.out, {units_of(own.first), nullptr}, own.in + (own.bias < 0 ? 0 : 1),
                           [&](int o, int i, float sum) {
                             to[i == own.in ? own.bias + o : weight_place(own, o, i)] += sum;
                           });
      if (at > 0) slope_below(at);
      __syncthreads();
    }
    if constexpr (use == DenseUse::corrected_steps) add_squares();
  }

  // Parameters moved by move(i, place, w, g, xi), with gradients and squares at 0 again. `noise` holds a normal for
  // each; where it is null make(counter, xi) makes those of four.
  template <class Make, class Move>
  __device__ void update(const float* noise, const Make& make, const Move& move) const {
    const auto one = [&](int i, float xi) {
      const int64_t at = place_of(i);
      parameters()[at] = move(i, at, parameters()[at], gradients()[at], xi);
      gradients()[at] = 0.0f;
      if constexpr (use == DenseUse::corrected_steps) squares()[at] = 0.0f;
    };
    if (noise) {
      for (int i = int(threadIdx.x); i < length_; i += threads) one(i, noise[i]);
      return;
    }
    for (int first = 4 * int(threadIdx.x); first < length_; first += 4 * threads) {
      float xi[4];
      make(first / 4, xi);
#pragma unroll
      for (int j = 0; j < 4; ++j)
        if (first + j < length_) one(first + j, xi[j]);
    }
  }

  // to(i, value) for what the chain's parameter i has in its place.
  template <class Take>
  __device__ void each(const float* values, const Take& to) const {
    for (int i = int(threadIdx.x); i < length_; i += threads) to(i, values[place_of(i)]);
  }

  __device__ DenseNumbers<threads>& numbers() const { return *place<DenseNumbers<threads>>(plan_.numbers); }
  __device__ uint32_t* samples() const { return place<uint32_t>(plan_.samples); }
  __device__ float* noise() const { return place<float>(plan_.noise); }
  __device__ float* parameters() const { return place<float>(plan_.parameters); }
  __device__ float* gradients() const { return place<float>(plan_.gradients); }
  __device__ float* squares() const { return place<float>(plan_.squares); }

 private:
  const DenseStack& stack_;
  const DensePlan& plan_;
  float* workspace_;
  int across_;                      // fours of samples
  int row_, four_, down_, along_;   // where a thread begins among rows of fours, and how far its next is
  const int64_t* coordinates_ = nullptr;
  int length_ = 0;

  static constexpr int kMostRows = threads == kWarp || !in_shared ? 4 : 8;  // of a thread, for its registers

  template <class T>
  __device__ T* place(int64_t at) const {
    if constexpr (!in_shared)
      if (at < 0) return reinterpret_cast<T*>(workspace_ + ~at);
    return reinterpret_cast<T*>(shared_memory() + int(at));
  }

  __device__ int depth() const { return int(stack_.depth); }
  __device__ const DenseUnits& layer(int at) const { return place<DenseUnits>(plan_.layers)[at]; }
  __device__ const DenseUnits& last() const { return layer(depth() - 1); }
  __device__ float* rho() const { return place<float>(plan_.rho); }
  __device__ float* units_of(int row) const { return place<float>(plan_.units) + row * plan_.stride; }
  __device__ float* before_of(int row) const { return place<float>(plan_.before) + row * plan_.stride; }
  __device__ int64_t place_of(int i) const { return coordinates_ ? coordinates_[i] : int64_t(i); }
  __device__ bool is_autoencoder() const { return stack_.presence || stack_.targets == stack_.inputs; }
  __device__ const float* targets() const { return is_autoencoder() ? units_of(0) : slopes_of(depth() - 1); }

  // Slopes of the loss by what a layer puts out, before its activation: of two layers in turn, or kept of all.
  __device__ float* slopes_of(int at) const {
    if constexpr (use == DenseUse::corrected_steps)
      return place<float>(plan_.slopes) + layer(at).outputs() * plan_.stride;
    else
      return place<float>(at % 2 ? plan_.odd_slopes : plan_.slopes);
  }

  __device__ static int weight_place(const DenseUnits& own, int o, int i) {
    return own.weight + (own.transposed ? i * own.out + o : o * own.in + i);
  }

  // body(row, b) for every row and every fourth sample b of it.
  template <class Body>
  __device__ void for_each_four(int rows, const Body& body) const {
    for (int row = row_, four = four_; row < rows;) {
      body(row, 4 * four);
      row += down_, four += along_;
      if (four >= across_) four -= across_, ++row;
    }
  }

  // body(place) for every sample of `count` units.
  template <class Body>
  __device__ void for_each_unit(int count, const Body& body) const {
    for_each_four(count, [&](int row, int b) {
#pragma unroll 1
      for (int s = 0; s < 4; ++s) body(row * plan_.stride + b + s);
    });
  }

  // to[i][b] = value(b, i) for i < width and b < count, 0 in the columns after. Several loads are under way at once.
  template <class Value>
  __device__ void gather(int width, int count, const Value& value, float* to) const {
    constexpr int kAtOnce = 4;
    const int down = threads / width, along = threads % width;
    int b = int(threadIdx.x) / width, i = int(threadIdx.x) % width;
    while (b < plan_.columns) {
      float values[kAtOnce];
      int places[kAtOnce];
#pragma unroll
      for (int at = 0; at < kAtOnce; ++at) {
        values[at] = b < count ? value(b, i) : 0.0f;
        places[at] = b < plan_.columns ? i * plan_.stride + b : -1;
        b += down, i += along;
        if (i >= width) i -= width, ++b;
      }
#pragma unroll
      for (int at = 0; at < kAtOnce; ++at)
        if (places[at] >= 0) to[places[at]] = values[at];
    }
  }

  // store(i, b, sums) of bias[i] + sum over k < depth, in order, of left(i, k) right[k][b + s] for i < rows, s < 4 and
  // every fourth column b. No bias: 0. A thread has as many rows as leave no thread without any.
  template <class Store>
  __device__ void product(const DenseLeft& left, int rows, int depth, const float* right, const float* bias,
                          const Store& store) const {
    const auto enough = [&](int each) { return (rows + each - 1) / each * across_ >= threads; };
    const bool whole = is_aligned(left.at, sizeof(float4));
    const bool along_depth = whole && left.column == 1 && left.row % 4 == 0 && depth % 4 == 0;
    const bool along_rows = whole && left.row == 1 && left.column % 4 == 0;
    const auto with = [&](auto each) {
      constexpr int kEach = decltype(each)::value;
      if constexpr (kEach >= 4) {
        if (along_depth)
          return product_of<kEach, DenseRun::along_depth>(left, rows, depth, right, bias, store);
        if (along_rows && rows % kEach == 0)
          return product_of<kEach, DenseRun::along_rows>(left, rows, depth, right, bias, store);
      }
      product_of<kEach, DenseRun::none>(left, rows, depth, right, bias, store);
    };
    if (kMostRows == 8 && enough(8))
      with(std::integral_constant<int, kMostRows>{});
    else if (enough(4))
      with(std::integral_constant<int, 4>{});
    else if (enough(2))
      with(std::integral_constant<int, 2>{});
    else
      with(std::integral_constant<int, 1>{});
  }

  template <int each, DenseRun run, class Store>
  __device__ void product_of(const DenseLeft& left, int rows, int depth, const float* right, const float* bias,
                             const Store& store) const {
    const int stride = plan_.stride;
    for_each_four((rows + each - 1) / each, [&](int tile, int b) {
      const int row = tile * each;
      float sums[each][4];
      const float* weights[each];
#pragma unroll
      for (int i = 0; i < each; ++i) {
        const int own = min(row + i, rows - 1);  // a row that is not there repeats the last
        weights[i] = left.at + own * left.row;
#pragma unroll
        for (int s = 0; s < 4; ++s) sums[i][s] = bias ? bias[own] : 0.0f;
      }
      const float* units = right + b;
      const auto add = [&](const float(&w)[each]) {
        float u[4];
        load_four_aligned(units, u);
        units += stride;
#pragma unroll
        for (int i = 0; i < each; ++i)
#pragma unroll
          for (int s = 0; s < 4; ++s) sums[i][s] = fma(w[i], u[s], sums[i][s]);
      };
      if constexpr (run == DenseRun::along_depth) {
        for (int k = 0; k < depth; k += 4) {
          float w[each][4];
#pragma unroll
          for (int i = 0; i < each; ++i) load_four_aligned(weights[i] + k, w[i]);
#pragma unroll
          for (int j = 0; j < 4; ++j) {
            float now[each];
#pragma unroll
            for (int i = 0; i < each; ++i) now[i] = w[i][j];
            add(now);
          }
        }
      } else {
#pragma unroll 2
        for (int k = 0; k < depth; ++k) {
          float w[each];
          if constexpr (run == DenseRun::along_rows) {
#pragma unroll
            for (int i = 0; i < each; i += 4) {
              float four[4];
              load_four_aligned(weights[0] + k * left.column + i, four);
#pragma unroll
              for (int j = 0; j < 4; ++j) w[i + j] = four[j];
            }
          } else {
#pragma unroll
            for (int i = 0; i < each; ++i) w[i] = weights[i][k * left.column];
          }
          add(w);
        }
      }
#pragma unroll
      for (int i = 0; i < each; ++i)
        if (row + i < rows) store(row + i, b, sums[i]);
    });
  }

  // store(i, j, sum over samples of left[i] right[j]) for i < rows, j < columns, each by one thread: the first of those
  // that share the samples where there are fewer sums than threads.
  template <bool multiplied, class Store>
  __device__ void sums_of_pairs(const DenseRows<multiplied>& left, int rows, const DenseRows<multiplied>& right,
                                int columns, const Store& store) const {
    const auto tiles = [&](int each) { return (rows + each - 1) / each * ((columns + each - 1) / each); };
    constexpr int kMost = threads == kWarp || (multiplied && !in_shared) ? 2 : 4;  // for its registers
    if (kMost == 4 && 2 * tiles(4) >= threads)
      sums_of_pairs_by<kMost>(left, rows, right, columns, store);
    else if (8 * tiles(2) >= threads)
      sums_of_pairs_by<2>(left, rows, right, columns, store);
    else
      sums_of_pairs_by<1>(left, rows, right, columns, store);
  }

  template <int each, bool multiplied, class Store>
  __device__ void sums_of_pairs_by(const DenseRows<multiplied>& left, int rows, const DenseRows<multiplied>& right,
                                   int columns, const Store& store) const {
    const int down = (rows + each - 1) / each, along = (columns + each - 1) / each, tiles = down * along;
    int halvings = 0;  // of the samples, among threads of a warp; none where the tiles are more than the threads
    while (tiles << (halvings + 1) <= threads && 2 << halvings <= min(32, across_)) ++halvings;
    const int parts = 1 << halvings;
    for (int first = 0; first < tiles * parts; first += threads) {
      const int tile = (first + int(threadIdx.x)) >> halvings, part = int(threadIdx.x) & (parts - 1);
      const int row = tile / along, column = tile % along;  // then every `down`-th, and every `along`-th
      float sums[each][each] = {};
      if (tile < tiles)
        for (int b = 4 * part; b < plan_.columns; b += 4 * parts) {
          float a[each][4], x[each][4];
#pragma unroll
          for (int i = 0; i < each; ++i) {
            left.load(min(row + i * down, rows - 1) * plan_.stride + b, a[i]);
            right.load(min(column + i * along, columns - 1) * plan_.stride + b, x[i]);
          }
#pragma unroll
          for (int s = 0; s < 4; ++s)
#pragma unroll
            for (int i = 0; i < each; ++i)
#pragma unroll
              for (int j = 0; j < each; ++j) sums[i][j] = fma(a[i][s], x[j][s], sums[i][j]);
        }
      for (int offset = parts / 2; offset > 0; offset /= 2)
#pragma unroll
        for (int i = 0; i < each; ++i)
#pragma unroll
          for (int j = 0; j < each; ++j) sums[i][j] += __shfl_down_sync(0xFFFFFFFFu, sums[i][j], offset);
      if (tile >= tiles || part != 0) continue;
#pragma unroll
      for (int i = 0; i < each; ++i)
#pragma unroll
        for (int j = 0; j < each; ++j)
          if (row + i * down < rows && column + j * along < columns)
            store(row + i * down, column + j * along, sums[i][j]);
    }
  }

  __device__ void slope_of_squared_error() const {
    const DenseUnits own = last();
    const float *const z = units_of(own.outputs()), *const y = targets();
    float* const to = slopes_of(depth() - 1);
    for_each_four(own.out, [&](int o, int b) {
      const int here = o * plan_.stride + b;
      float slope[4], off[4], weights[4];
      load_four_aligned(z + here, slope);
      load_four_aligned(y + here, off);
      load_four_aligned(rho() + b, weights);
#pragma unroll
      for (int s = 0; s < 4; ++s) slope[s] = (slope[s] - off[s]) * weights[s];
      take_back_through(own.activation, own.outputs(), here, slope);
      store_four_aligned(slope, to + here);
    });
  }

  template <class Samples>
  __device__ void slope_of_cross_entropy(const Samples& sample_of, int count) const {
    const DenseUnits own = last();
    const int stride = plan_.stride;
    for (int b = int(threadIdx.x); b < plan_.columns; b += threads) {
      const float* const z = units_of(own.outputs()) + b;
      float* const to = slopes_of(depth() - 1) + b;
      const float most = greatest(z), weight = rho()[b];
      const int label = b < count ? int(stack_.labels[sample_of(b)]) : -1;
      float sum = 0.0f;
      for (int o = 0; o < own.out; ++o) sum += to[o * stride] = exp(z[o * stride] - most);
      const float scale = weight / sum;
      for (int o = 0; o < own.out; ++o) {
        const float slope = to[o * stride] * scale - (o == label ? weight : 0.0f);
        to[o * stride] = back_through(own.activation, slope, z[o * stride]);
      }
    }
  }

  // The largest output of a sample.
  __device__ float greatest(const float* z) const {
    float most = z[0];
    for (int o = 1; o < last().out; ++o) most = greater(z[o * plan_.stride], most);
    return most;
  }

  __device__ void back_through_gelu(const DenseUnits& own, float* slope) const {
    const float* const before = before_of(own.outputs());
    for_each_unit(own.out, [&](int here) {
      const float x = before[here];
      slope[here] *= fma(x * 0.39894228f, exp(-0.5f * x * x), 0.5f * (1.0f + std::erf(x * 0.70710678f)));
    });
  }

  // Slopes of four samples at a place among the units whose first row is `row`.
  __device__ void take_back_through(Activation activation, int row, int here, float (&slope)[4]) const {
    if (activation == Activation::identity) return;
    float unit[4];
    load_four_aligned(units_of(row) + here, unit);
#pragma unroll
    for (int s = 0; s < 4; ++s) slope[s] = back_through(activation, slope[s], unit[s]);
  }

  // From the slopes of a layer those of the one below.
  __device__ void slope_below(int at) const {
    const DenseUnits own = layer(at);
    const Activation activation = layer(at - 1).activation;
    const float* const weight = parameters() + own.weight;
    float* const to = slopes_of(at - 1);
    product(own.transposed ? DenseLeft{weight, own.out, 1} : DenseLeft{weight, 1, own.in}, own.in, own.out,
            slopes_of(at), nullptr, [&](int i, int b, float(&slope)[4]) {
              const int here = i * plan_.stride + b;
              take_back_through(activation, own.first, here, slope);
              store_four_aligned(slope, to + here);
            });
  }

  // The sums over samples of the squares of each one's own gradient, a product of a slope and a unit. A weight that
  // several layers share has the products of their gradients too.
  __device__ void add_squares() const {
    float* const to = squares();
    for (int at = 0; at < depth(); ++at)
      for (int other = at; other < depth(); ++other) {
        const DenseUnits own = layer(at), second = layer(other);
        const float times = at == other ? 1.0f : 2.0f;
        const float *const slope = slopes_of(at), *const units = units_of(own.first);
        const float *const their_slope = slopes_of(other), *const their_units = units_of(second.first);
        const bool turned = own.transposed != second.transposed;
        if (own.weight == second.weight)
          sums_of_pairs<true>({slope, turned ? their_units : their_slope}, own.out,
                              {units, turned ? their_slope : their_units}, own.in,
                              [&](int o, int i, float sum) { to[weight_place(own, o, i)] += times * sum; });
        if (own.bias >= 0 && own.bias == second.bias) {
          const float* const ones = units_of(own.outputs() - 1);
          sums_of_pairs<true>({slope, their_slope}, own.out, {ones, ones}, 1,
                              [&](int o, int, float sum) { to[own.bias + o] += times * sum; });
        }
        __syncthreads();
      }
  }
};

}  // namespace pf::cuda
