#include "bindings/cuda_forms.h"
#include "core/block_sum.cuh"
#include "core/four.cuh"
#include "core/noise.h"
#include "langevin_step/langevin_rule.h"
#include "langevin_step/row_pieces.h"

namespace pf::cuda {

namespace {

constexpr int kThreads = 256;
constexpr int kCounters = kRowPiece / (4 * kThreads);  // a thread has, all its loads under way before the first use
constexpr int kFinishThreads = 128;

// What a piece adds to its chain's sums; the last is the number of parameters that are not finite.
enum { kSquaredGradient, kSquaredDistance, kGradientDotDistance, kSquaredMomentum, kBroken, kSums };

// Bad row_starts must not lead a step outside its tensors.
__device__ bool lies_inside(const LangevinStep& op, int64_t row) {
  const int64_t start = op.row_starts[row], end = op.row_starts[row + 1], center = op.center_starts[row];
  return start >= 0 && start <= end && end <= op.param_count && center >= 0 &&
         center + (end - start) <= op.center_count;
}

struct BlockPlace {
  RowPiece piece;
  int64_t params, center;  // of the piece's first parameter
};

__device__ BlockPlace find_place(const LangevinStep& op) {
  RowPiece piece = piece_in_slot(op.row_starts, op.chains, blockIdx.x);
  if (piece.begin < 0 || !lies_inside(op, piece.row)) piece.count = 0;
  return {piece, op.row_starts[piece.row] + piece.begin, op.center_starts[piece.row] + piece.begin};
}

struct Numbers {
  LangevinChain chain;
  uint64_t seed, chain_id, step;
  float box;
};

template <LangevinRule rule, class Gradient>
__global__ void __launch_bounds__(kThreads, rule == LangevinRule::sgld ? 4 : 3)
    langevin_step_kernel(const LangevinStep op, double* piece_sums) {
  constexpr bool has_memory = rule != LangevinRule::sgld;
  __shared__ BlockPlace place;
  __shared__ Numbers numbers;
  __shared__ double partial[kThreads / 32][kSums];
  if (threadIdx.x == 0) place = find_place(op);
  __syncthreads();
  if (place.piece.count == 0) return;

  float w[kCounters][4], g[kCounters][4], w_star[kCounters][4], memory[kCounters][4];
  Gradient* const grads = static_cast<Gradient*>(op.grads) + place.params;
#pragma unroll
  for (int i = 0; i < kCounters; ++i) {
    const int at = 4 * (i * kThreads + int(threadIdx.x)), count = place.piece.count - at;
    load_four(op.params + place.params + at, count, w[i]);
    load_four(grads + at, count, g[i]);
    load_four(op.center + place.center + at, count, w_star[i]);
    if (has_memory) load_four(op.memory + place.params + at, count, memory[i]);
  }
  if (threadIdx.x == 0) {
    const int64_t row = place.piece.row;
    numbers = {langevin_chain(op, row, *op.step), uint64_t(*op.seed), uint64_t(op.chain_ids[row]), uint64_t(*op.step),
               op.box ? op.box[row] : 0.0f};
  }
  __syncthreads();

  float squared_gradient = 0, squared_distance = 0, gradient_dot_distance = 0, squared_momentum = 0;
  int broken = 0;
#pragma unroll
  for (int i = 0; i < kCounters; ++i) {
    const int at = 4 * (i * kThreads + int(threadIdx.x)), count = place.piece.count - at;
    if (count <= 0) break;
    float xi[4];
    four_normals(numbers.seed, numbers.chain_id, numbers.step, uint64_t(place.piece.begin + at) / 4, xi);
    if (op.statistics)
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const float distance = w[i][j] - w_star[i][j];
        squared_gradient = fma(g[i][j], g[i][j], squared_gradient);
        squared_distance = fma(distance, distance, squared_distance);
        gradient_dot_distance = fma(g[i][j], distance, gradient_dot_distance);
      }
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      w[i][j] = langevin_rule<rule>(numbers.chain, w[i][j], g[i][j], w_star[i][j], xi[j], memory[i][j]);
      if (rule == LangevinRule::sgnht && j < count)
        squared_momentum = fma(memory[i][j], memory[i][j], squared_momentum);
      g[i][j] = 0.0f;
    }
    if (op.box)
#pragma unroll
      for (int j = 0; j < 4; ++j) w[i][j] = into_box(w[i][j], w_star[i][j], numbers.box);
    if (op.statistics)
#pragma unroll
      for (int j = 0; j < 4; ++j) broken += j < count && !is_finite(w[i][j]);
    store_four(w[i], count, op.params + place.params + at);
    store_four(g[i], count, grads + at);
    if (has_memory) store_four(memory[i], count, op.memory + place.params + at);
    if (op.shadow) store_four(w[i], count, op.shadow + place.params + at);
  }

  if (op.statistics || rule == LangevinRule::sgnht) {
    double sums[kSums] = {squared_gradient, squared_distance, gradient_dot_distance, squared_momentum, double(broken)};
    block_sum<kThreads>(sums, partial);
    if (threadIdx.x == 0)
      for (int i = 0; i < kSums; ++i) piece_sums[int64_t(blockIdx.x) * kSums + i] = sums[i];
  }
}

// A block adds up the pieces of one chain. That of a chain which lay outside, and so was not moved, is not finite.
__global__ void __launch_bounds__(kFinishThreads) finish_kernel(const LangevinStep op, const double* piece_sums) {
  __shared__ double partial[kFinishThreads / 32][kSums];
  const int64_t chain = blockIdx.x;
  const bool moved = lies_inside(op, chain);
  const int64_t length = moved ? op.row_starts[chain + 1] - op.row_starts[chain] : 0;
  const double* const sums_of_chain = piece_sums + first_slot(op.row_starts, chain) * kSums;
  double sums[kSums] = {};
  for (int64_t piece = threadIdx.x; piece * kRowPiece < length; piece += kFinishThreads)
#pragma unroll
    for (int i = 0; i < kSums; ++i) sums[i] += sums_of_chain[piece * kSums + i];
  block_sum<kFinishThreads>(sums, partial);
  if (threadIdx.x != 0) return;
  if (op.statistics) {
    const auto write = [&](StepStatistic name, double value) { op.statistics[int(name) * op.chains + chain] = value; };
    write(StepStatistic::squared_gradient, sums[kSquaredGradient]);
    write(StepStatistic::squared_distance, sums[kSquaredDistance]);
    write(StepStatistic::gradient_dot_distance, sums[kGradientDotDistance]);
    write(StepStatistic::finite, moved && sums[kBroken] == 0.0 ? 1.0 : 0.0);
  }
  if (op.thermostat && length > 0)
    op.thermostat[chain] = warmer(op, chain, sums[kSquaredMomentum], length);
}

template <LangevinRule rule>
void launch(const LangevinStep& op, double* piece_sums, cudaStream_t stream) {
  const unsigned blocks = unsigned(row_slots(op.param_count, op.chains));
  if (op.grads_are_bfloat16)
    langevin_step_kernel<rule, uint16_t><<<blocks, kThreads, 0, stream>>>(op, piece_sums);
  else
    langevin_step_kernel<rule, float><<<blocks, kThreads, 0, stream>>>(op, piece_sums);
}

}  // namespace

int64_t langevin_step_sums(const LangevinStep& op) {
  return op.statistics || op.thermostat ? kSums * row_slots(op.param_count, op.chains) : 0;
}

cudaError_t langevin_step(const LangevinStep& op, double* piece_sums, cudaStream_t stream) {
  if (op.chains == 0) return cudaSuccess;
  switch (op.rule) {
    case LangevinRule::sgld: launch<LangevinRule::sgld>(op, piece_sums, stream); break;
    case LangevinRule::rmsprop:
    case LangevinRule::rmsprop_bias_corrected: launch<LangevinRule::rmsprop>(op, piece_sums, stream); break;
    case LangevinRule::sghmc: launch<LangevinRule::sghmc>(op, piece_sums, stream); break;
    case LangevinRule::sgnht: launch<LangevinRule::sgnht>(op, piece_sums, stream); break;
  }
  if (op.statistics || op.thermostat)
    finish_kernel<<<unsigned(op.chains), kFinishThreads, 0, stream>>>(op, piece_sums);
  return cudaGetLastError();
}

}  // namespace pf::cuda
