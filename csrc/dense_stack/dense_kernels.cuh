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

// The chain's parameters after a step by a rule of langevin_step.
template <LangevinRule rule, class Chain>
__device__ void langevin_update(const Chain& own, const DenseSteps& op, int64_t chain, const float* noise, int64_t step) {
  constexpr bool has_memory = rule != LangevinRule::sgld;
  const LangevinStep& bank = op.op;
  const float* const center = bank.center + bank.center_starts[chain];
  float* const memories = has_memory ? bank.memory + bank.row_starts[chain] : nullptr;
  const LangevinChain& constants = own.numbers().chain;
  double squared_momentum[1] = {};
  own.update(noise, uint64_t(*bank.seed), uint64_t(bank.chain_ids[chain]), uint64_t(step),
             [&](int i, int64_t, float w, float g, float xi) {
               float memory = has_memory ? memories[i] : 0.0f;
               w = langevin_rule<rule>(constants, w, g, center[i], xi, memory);
               if (has_memory) memories[i] = memory;
               if (rule == LangevinRule::sgnht) squared_momentum[0] += double(memory) * double(memory);
               return w;
             });
  if constexpr (rule == LangevinRule::sgnht) {
    block_sum<Chain::kThreads>(squared_momentum, own.numbers().partial);
    if (threadIdx.x == 0)
      bank.thermostat[chain] =
          warmer(bank, chain, squared_momentum[0], bank.row_starts[chain + 1] - bank.row_starts[chain]);
  }
}

template <DenseUse use, class Chain>
__device__ void update(const Chain& own, const DenseSteps& op, int64_t chain, const float* noise, int64_t step) {
  if constexpr (use == DenseUse::corrected_steps) {
    const LangevinStep& bank = op.op;
    const float* const center = bank.center + bank.center_starts[chain];
    const PerSampleChain& constants = own.numbers().sampled;
    const float batch = float(op.batch);
    own.update(noise, uint64_t(*bank.seed), uint64_t(bank.chain_ids[chain]), uint64_t(step),
               [&](int i, int64_t place, float w, float g, float xi) {
                 const Moments each = moments(0.0f, batch * g, batch * batch * own.squares()[place], batch);
                 return per_sample_rule(constants, w, each, center[i], xi);
               });
  } else {
    switch (op.op.rule) {
      case LangevinRule::sgld: return langevin_update<LangevinRule::sgld>(own, op, chain, noise, step);
      case LangevinRule::rmsprop:
      case LangevinRule::rmsprop_bias_corrected:
        return langevin_update<LangevinRule::rmsprop>(own, op, chain, noise, step);
      case LangevinRule::sghmc: return langevin_update<LangevinRule::sghmc>(own, op, chain, noise, step);
      case LangevinRule::sgnht: return langevin_update<LangevinRule::sgnht>(own, op, chain, noise, step);
    }
  }
}

template <DenseUse use>
__device__ void set_numbers(const DenseSteps& op, int64_t chain, int64_t step, LangevinChain& plain,
                            PerSampleChain& sampled) {
  if constexpr (use == DenseUse::corrected_steps) {
    PerSampleLangevinStep each{};
    each.lr = op.op.lr, each.n_beta = op.op.n_beta, each.localization = op.op.localization;
    each.noise_scale = op.op.noise_scale, each.batch = op.batch;
    sampled = per_sample_chain(each, chain);
  } else {
    plain = langevin_chain(op.op, chain, step);
  }
}

template <DenseUse use, int threads, bool in_shared>
__device__ void run_steps(DenseChain<use, threads, in_shared>& own, const DenseSteps& op, const DensePlan& plan,
                          int64_t chain) {
  const LangevinStep& bank = op.op;
  const int64_t start = bank.row_starts[chain], first = *bank.step, last = first + op.steps;
  const int length = int(bank.row_starts[chain + 1] - start), counters = (length + 3) / 4;
  const uint64_t seed = uint64_t(*bank.seed), chain_id = uint64_t(bank.chain_ids[chain]);
  const uint64_t replica = uint64_t(op.replicas[chain]);
  const float share = 1.0f / float(op.batch);
  own.load(chain, bank.params + start, length);

  const int noisy_steps = length ? threads / counters : 0;  // whose noise is made at once, a counter a thread
  int minibatches_left = 0, noises_left = 0;
  int64_t step = first;
  do {
    if (minibatches_left == 0) {
      own.choose(seed, replica, uint64_t(step));
      minibatches_left = plan.minibatches;
      __syncthreads();
    }
    const int* const samples = own.samples() + (plan.minibatches - minibatches_left--) * plan.minibatch;
    for (int64_t done = 0; done < op.batch; done += plan.columns) {
      const auto sample_of = [&](int b) { return int64_t(samples[int(done) + b]); };
      const int count = int(min(int64_t(plan.columns), op.batch - done));
      own.take(sample_of, count, share);
      own.forward();
      own.add_gradient(sample_of, count);
    }
    if (op.steps == 0) break;
    if (threadIdx.x == 0) set_numbers<use>(op, chain, step, own.numbers().chain, own.numbers().sampled);
    if (noisy_steps && noises_left == 0) {
      noises_left = noisy_steps;
      if (const int at = int(threadIdx.x); at < noisy_steps * counters) {
        float xi[4];
        four_normals(seed, chain_id, uint64_t(step + at / counters), uint64_t(at % counters), xi);
        store_four(xi, 4, own.noise() + 4 * at);
      }
    }
    __syncthreads();
    const float* const noise = noisy_steps ? own.noise() + (noisy_steps - noises_left--) * 4 * counters : nullptr;
    update<use>(own, op, chain, noise, step);
    __syncthreads();
  } while (++step < last);

  if (op.steps == 0)
    own.each(own.gradients(), [&](int i, float g) { static_cast<float*>(bank.grads)[start + i] += g; });
  else
    own.each(own.parameters(), [&](int i, float w) { bank.params[start + i] = w; });
}

constexpr int least_blocks(int threads) { return threads == kWarp ? 24 : threads == kSomeWarps ? 4 : 2; }

template <DenseUse use, int threads, bool in_shared>
__global__ void __launch_bounds__(threads, least_blocks(threads))
    dense_steps_kernel(const DenseSteps op, const DensePlan plan, float* workspace) {
  DenseChain<use, threads, in_shared> own(op.stack, plan, workspace);
  for (int64_t chain = blockIdx.x; chain < op.op.chains; chain += gridDim.x) {
    const int64_t start = op.op.row_starts[chain], end = op.op.row_starts[chain + 1], center = op.op.center_starts[chain];
    if (op.op.lr[chain] != 0.0f && lies_inside(op.stack, chain, start, end, op.op.param_count) && center >= 0 &&
        center + (end - start) <= op.op.center_count)
      run_steps(own, op, plan, chain);
  }
}

template <int threads, bool in_shared>
__global__ void __launch_bounds__(threads, least_blocks(threads))
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
