// The kernels of a dense stack: a block takes a chain through all its steps, or over all samples.
#pragma once
#include "dense_stack/dense_chain.cuh"

namespace pf::cuda {

// Bad row_starts must not lead a block outside its tensors.
inline __device__ bool lies_inside(const DenseStack& stack, int64_t chain, int64_t start, int64_t end, int64_t count) {
  const int64_t first = stack.coordinate_starts[chain], length = end - start;
  return start >= 0 && length >= 0 && end <= count &&
         (first < 0 ? length == stack.params : first + length <= stack.coordinate_count);
}

// What a block knows of its chain beside the op.
struct DenseRow {
  int64_t chain, start;
  int length;
  uint64_t seed, chain_id;
  const float* center;
  float* memory;
};

// A step by a rule of langevin_step.
template <LangevinRule rule, class Chain, class Make>
__device__ void langevin_update(const Chain& own, const LangevinStep& bank, const DenseRow& row, const float* noise,
                                const Make& make) {
  constexpr bool has_memory = rule != LangevinRule::sgld;
  const LangevinChain& constants = own.numbers().chain;
  double squared_momentum[1] = {};
  own.update(noise, make, [&](int i, int64_t, float w, float g, float xi) {
    float memory = has_memory ? row.memory[i] : 0.0f;
    w = langevin_rule<rule>(constants, w, g, row.center[i], xi, memory);
    if (has_memory) row.memory[i] = memory;
    if (rule == LangevinRule::sgnht) squared_momentum[0] += double(memory) * double(memory);
    return w;
  });
  if constexpr (rule == LangevinRule::sgnht) {
    block_sum<Chain::kThreads>(squared_momentum, own.numbers().partial);
    if (threadIdx.x == 0 && row.length > 0)
      bank.thermostat[row.chain] = warmer(bank, row.chain, squared_momentum[0], row.length);
  }
}

template <DenseUse use, class Chain, class Make>
__device__ void update(const Chain& own, const DenseSteps& op, const DenseRow& row, const float* noise,
                       const Make& make) {
  if constexpr (use == DenseUse::corrected_steps) {
    const PerSampleChain& constants = own.numbers().sampled;
    const float batch = float(op.batch);
    own.update(noise, make, [&](int i, int64_t place, float w, float g, float xi) {
      const Moments each = moments(0.0f, batch * g, batch * batch * own.squares()[place], batch);
      return per_sample_rule(constants, w, each, row.center[i], xi);
    });
  } else {
    switch (op.op.rule) {
      case LangevinRule::sgld: return langevin_update<LangevinRule::sgld>(own, op.op, row, noise, make);
      case LangevinRule::rmsprop:
      case LangevinRule::rmsprop_bias_corrected:
        return langevin_update<LangevinRule::rmsprop>(own, op.op, row, noise, make);
      case LangevinRule::sghmc: return langevin_update<LangevinRule::sghmc>(own, op.op, row, noise, make);
      case LangevinRule::sgnht: return langevin_update<LangevinRule::sgnht>(own, op.op, row, noise, make);
    }
  }
}

// The numbers of a chain's step, by one thread.
template <DenseUse use, class Numbers>
__device__ void set_numbers(const DenseSteps& op, int64_t chain, int64_t step, Numbers& numbers) {
  if constexpr (use == DenseUse::corrected_steps) {
    PerSampleLangevinStep each{};
    each.lr = op.op.lr, each.n_beta = op.op.n_beta, each.localization = op.op.localization;
    each.noise_scale = op.op.noise_scale, each.batch = op.batch;
    numbers.sampled = per_sample_chain(each, chain);
  } else {
    numbers.chain = langevin_chain(op.op, chain, step);
  }
}

template <DenseUse use, int threads, bool in_shared>
__device__ void run_steps(DenseChain<use, threads, in_shared>& own, const DenseSteps& op, const DensePlan& plan,
                          int64_t chain) {
  const LangevinStep& bank = op.op;
  const int64_t start = bank.row_starts[chain], first = *bank.step, last = first + op.steps;
  const DenseRow row{chain, start, int(bank.row_starts[chain + 1] - start), uint64_t(*bank.seed),
                     uint64_t(bank.chain_ids[chain]), bank.center + bank.center_starts[chain],
                     bank.memory ? bank.memory + start : nullptr};
  const bool numbers_change = bank.rule == LangevinRule::rmsprop_bias_corrected || bank.rule == LangevinRule::sgnht;
  const float share = 1.0f / float(op.batch);
  own.load(chain, bank.params + start, row.length);

  // The words of several steps are made at once, where one step's are fewer than the threads.
  const int counters = (row.length + 3) / 4, noisy_steps = row.length ? threads / counters : 0;
  int minibatches_left = 0, noises_left = 0;
  int64_t step = first;
  do {
    if (minibatches_left == 0) {
      own.choose(row.seed, uint64_t(op.replicas[chain]), uint64_t(step));
      minibatches_left = plan.minibatches;
      __syncthreads();
    }
    const uint32_t* const samples = own.samples() + (plan.minibatches - minibatches_left--) * plan.minibatch;
    for (int64_t done = 0; done < op.batch; done += plan.columns) {
      const auto sample_of = [&](int b) { return int64_t(samples[int(done) + b]); };
      const int count = int(min(int64_t(plan.columns), op.batch - done));
      own.take(sample_of, count, share);
      own.forward();
      own.add_gradient(sample_of, count);
    }
    if (op.steps == 0) break;
    if (threadIdx.x == 0 && (step == first || numbers_change)) set_numbers<use>(op, chain, step, own.numbers());
    if (noisy_steps && noises_left == 0) {
      noises_left = noisy_steps;
      if (const int at = int(threadIdx.x); at < noisy_steps * counters) {
        float xi[4];
        four_normals(row.seed, row.chain_id, uint64_t(step + at / counters), uint64_t(at % counters), xi);
        store_four_aligned(xi, own.noise() + 4 * at);
      }
    }
    __syncthreads();
    const float* const noise = noisy_steps ? own.noise() + (noisy_steps - noises_left--) * 4 * counters : nullptr;
    update<use>(own, op, row, noise, [&](int at, float(&xi)[4]) {
      four_normals(row.seed, row.chain_id, uint64_t(step), uint64_t(at), xi);
    });
    __syncthreads();
  } while (++step < last);

  if (op.steps == 0)
    own.each(own.gradients(), [&](int i, float g) { static_cast<float*>(bank.grads)[start + i] += g; });
  else
    own.each(own.parameters(), [&](int i, float w) { bank.params[start + i] = w; });
}

// As many chains as of a tiny model have room in a multiprocessor's shared memory.
constexpr int least_blocks(DenseUse use, int threads) {
  const int tiny = use == DenseUse::steps ? 24 : 20;
  return threads == kWarp ? tiny : threads == kSomeWarps ? 4 : 2;
}

template <DenseUse use, int threads, bool in_shared>
__global__ void __launch_bounds__(threads, least_blocks(use, threads))
    dense_steps_kernel(const DenseSteps op, const DensePlan plan, float* workspace) {
  DenseChain<use, threads, in_shared> own(op.stack, plan, workspace);
  for (int64_t chain = blockIdx.x; chain < op.op.chains; chain += gridDim.x) {
    const int64_t start = op.op.row_starts[chain], end = op.op.row_starts[chain + 1];
    const int64_t center = op.op.center_starts[chain];
    if (op.op.lr[chain] != 0.0f && lies_inside(op.stack, chain, start, end, op.op.param_count) && center >= 0 &&
        center + (end - start) <= op.op.center_count)
      run_steps(own, op, plan, chain);
  }
}

template <int threads, bool in_shared>
__global__ void __launch_bounds__(threads, least_blocks(DenseUse::losses, threads))
    dense_losses_kernel(const DenseLosses op, const DensePlan plan, float* workspace) {
  DenseChain<DenseUse::losses, threads, in_shared> own(op.stack, plan, workspace);
  for (int64_t chain = blockIdx.x; chain < op.chains; chain += gridDim.x) {
    const int64_t start = op.row_starts[chain], end = op.row_starts[chain + 1];
    float* const to = op.losses + chain * op.stride;
    if (!lies_inside(op.stack, chain, start, end, op.param_count)) {
      for (int64_t j = threadIdx.x; j < op.stack.samples; j += threads) to[j] = NAN;
      continue;
    }
    own.load(chain, op.rows + start, int(end - start));
    for (int64_t first = 0; first < op.stack.samples; first += plan.columns) {
      const auto sample_of = [&](int b) { return first + b; };
      const int count = int(min(int64_t(plan.columns), op.stack.samples - first));
      own.take(sample_of, count, 1.0f);
      own.forward();
      own.losses(sample_of, count, to + first);
    }
  }
}

}  // namespace pf::cuda
