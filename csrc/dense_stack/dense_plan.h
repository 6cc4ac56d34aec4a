// How a chain of a dense stack lies in a multiprocessor: what its block keeps in shared memory, and, where that is too
// small, in a workspace in the device's memory. Decided on the host, from sizes alone.
#pragma once
#include <algorithm>
#include <cstdint>

#include "dense_stack/dense_stack.h"

namespace pf::cuda {

// All lengths and places are in floats; a place below 0 is ~place in the block's workspace.
struct DensePlan {
  int threads;            // of a block, which takes one chain at a time
  int columns;            // samples taken together, a multiple of 4
  int stride;             // from one unit's samples to the next's
  int minibatches;        // chosen at once
  int minibatch;          // from one of them to the next
  int64_t numbers, layers, samples, rho, noise, parameters, slopes, odd_slopes, units, before, gradients, squares;
  int64_t shared, workspace;  // of a block
};

// What a block may take of shared memory: all that a kernel can be given, and half of a multiprocessor's.
struct SharedLimits {
  int64_t whole, half;
};

enum class DenseUse { losses, steps, corrected_steps };
enum class DenseMemory { shared, half_shared };

constexpr int kWarp = 32, kSomeWarps = 128, kManyWarps = 256;  // threads of a block
constexpr int64_t kDenseNumbers = 32;                          // hold DenseNumbers
constexpr int64_t kLayerNumbers = 8;                           // hold DenseUnits
constexpr int64_t kMostColumns = 64, kFewColumns = 32;

class DensePlanner {
 public:
  DensePlanner(const DenseStack& stack, int64_t batch, int64_t steps, DenseUse use, int64_t most_columns,
               SharedLimits limits, DenseMemory memory)
      : limit_((memory == DenseMemory::shared ? limits.whole : limits.half) / 4) {
    int64_t out[2] = {}, unit_rows = 0, widest = 0;
    bool has_gelu = false;
    for (int64_t at = 0; at < stack.depth; ++at) {
      const DenseLayer& layer = stack.layers[at];
      out[at % 2] = std::max(out[at % 2], layer.out);
      unit_rows += layer.in + 1;  // a row of ones goes with them, which the bias multiplies
      widest = std::max({widest, layer.in, layer.out});
      has_gelu |= layer.activation == Activation::gelu;
    }
    unit_rows += stack.layers[stack.depth - 1].out;

    const int64_t passes = divided(batch, most_columns), columns = multiple_of_four(divided(batch, passes));
    plan.columns = int(columns);
    // An odd number of fours, so that fours of neighbouring units lie in different banks.
    plan.stride = int(columns % 8 ? columns : columns + 4);
    // Some sixteen outputs a thread.
    const int64_t outputs = widest * columns;
    plan.threads = memory == DenseMemory::half_shared || outputs > 16 * kSomeWarps ? kManyWarps
                   : outputs > 32 * kWarp                                          ? kSomeWarps
                                                                                   : kWarp;

    const bool moves = use != DenseUse::losses;
    plan.numbers = take(kDenseNumbers);
    plan.layers = take(kLayerNumbers * stack.depth);
    if (moves) {
      const int64_t minibatch = multiple_of_four(batch);
      plan.minibatch = int(minibatch);
      plan.minibatches = int(std::max<int64_t>(1, std::min(steps, 4 * plan.threads / minibatch)));
      plan.samples = take(plan.minibatches * minibatch);
      plan.noise = take(4 * plan.threads);
    }
    plan.rho = take(columns);
    plan.parameters = take(stack.params);
    if (use == DenseUse::corrected_steps) {
      plan.slopes = take(unit_rows * plan.stride);  // of all layers
    } else {
      plan.slopes = take(out[0] * plan.stride);
      plan.odd_slopes = take(out[1] * plan.stride);
    }
    plan.units = take(unit_rows * plan.stride);
    if (has_gelu) plan.before = take(unit_rows * plan.stride);
    if (moves) plan.gradients = take(stack.params);
    if (use == DenseUse::corrected_steps) plan.squares = take(stack.params);
  }

  DensePlan plan{};

 private:
  int64_t limit_;

  static int64_t divided(int64_t value, int64_t by) { return (value + by - 1) / by; }
  static int64_t multiple_of_four(int64_t value) { return divided(value, 4) * 4; }

  // What is asked for first is what is used most.
  int64_t take(int64_t count) {
    count = multiple_of_four(count);
    int64_t& used = plan.shared + count <= limit_ ? plan.shared : plan.workspace;
    const int64_t place = &used == &plan.shared ? used : ~used;
    used += count;
    return place;
  }
};

// Everything in shared memory where that can be; else two blocks share a multiprocessor.
inline DensePlan dense_plan(const DenseStack& stack, int64_t batch, int64_t steps, DenseUse use, SharedLimits limits) {
  for (const int64_t columns : {kMostColumns, kFewColumns}) {
    const DensePlan plan = DensePlanner(stack, batch, steps, use, columns, limits, DenseMemory::shared).plan;
    if (plan.workspace == 0) return plan;
  }
  return DensePlanner(stack, batch, steps, use, kFewColumns, limits, DenseMemory::half_shared).plan;
}

}  // namespace pf::cuda
