// Every CPU kernel on several plain threads, for ThreadSanitizer, which reports a race by ending the program with an
// error. Also checks that several threads leave the same bits as one.
#include <cstdio>
#include <cstring>
#include <random>
#include <vector>

#include "bindings/cpu_forms.h"

namespace {

std::mt19937 generator(20261121);

std::vector<float> normals(int64_t count) {
  std::normal_distribution<float> normal;
  std::vector<float> numbers(static_cast<size_t>(count));
  for (float& each : numbers) each = normal(generator);
  return numbers;
}

std::vector<int64_t> integers(int64_t count, int64_t below) {
  std::vector<int64_t> numbers(static_cast<size_t>(count));
  for (int64_t& each : numbers) each = int64_t(generator()) % below;
  return numbers;
}

int failures = 0;

// Runs an op on copies of its outputs, with one thread and with four.
template <class Number, class Run>
void check(const char* name, const std::vector<Number>& outputs, const Run& run) {
  std::vector<Number> alone = outputs, shared = outputs;
  run(alone.data(), 1);
  run(shared.data(), 4);
  if (std::memcmp(alone.data(), shared.data(), alone.size() * sizeof(Number)) != 0) {
    std::printf("%s: four threads leave other bits than one\n", name);
    ++failures;
  }
}

}  // namespace

int main() {
  const int64_t chains = 5, params = 9001, seed = 3, step = 4;
  const std::vector<float> lr(chains, 0.01f), n_beta(chains, 10.0f), pull(chains, 5.0f), scale(chains, 1.0f);
  std::vector<int64_t> ids(chains), rows(chains + 1), shared_center(chains, 0);
  for (int64_t chain = 0; chain < chains; ++chain) {
    ids[size_t(chain)] = chain;
    rows[size_t(chain) + 1] = (chain + 1) * params;
  }
  const std::vector<float> params0 = normals(chains * params), center = normals(params);

  check("langevin_step", params0, [&](float* w, int threads) {
    std::vector<float> g = params0, momentum = params0, thermostat = lr;
    std::vector<double> statistics(pf::kStepStatistics * chains);
    const pf::LangevinStep op{w, g.data(), center.data(), rows.data(), shared_center.data(), lr.data(), n_beta.data(),
                              pull.data(), scale.data(), ids.data(), &seed, &step, momentum.data(), thermostat.data(),
                              nullptr, nullptr, statistics.data(), pf::LangevinRule::sgnht, 0.1, 0.0, 0, chains,
                              chains * params, params};
    pf::PF_ISA::langevin_step(op, threads);
  });

  check("normal", params0, [&](float* out, int threads) {
    pf::PF_ISA::normal({out, ids.data(), &seed, &step, chains, params}, threads);
  });

  const int64_t batch = 6, losses = 5000, observables = 9, groups = 2;
  const std::vector<float> grads = normals(chains * batch * params);
  const std::vector<float> loss = normals(chains * losses), phi = normals(chains * observables);
  const std::vector<float> loss_shift = normals(losses), phi_shift = normals(observables);
  const std::vector<int64_t> group_of = integers(chains, groups);
  std::vector<double> noise_scale(chains);
  const auto per_sample = [&](float* w) {
    return pf::PerSampleLangevinStep{w, grads.data(), nullptr, center.data(), lr.data(), n_beta.data(), pull.data(),
                                     scale.data(), ids.data(), &seed, &step, noise_scale.data(), 0.0, 0, chains, batch,
                                     params, 1};
  };
  check("per_sample_langevin_step", params0,
        [&](float* w, int threads) { pf::PF_ISA::per_sample_langevin_step(per_sample(w), threads); });

  const int64_t total = groups * (1 + losses + observables + observables * losses + observables * observables);
  const auto totals = [&](double* at) {
    double* const loss_sum = at + groups;
    double* const observable_sum = loss_sum + groups * losses;
    double* const cross = observable_sum + groups * observables;
    return pf::ComomentsUpdate{loss.data(), phi.data(), loss_shift.data(), phi_shift.data(), group_of.data(), at,
                               loss_sum, observable_sum, cross, cross + groups * observables * losses, chains, losses,
                               observables, groups};
  };
  const std::vector<double> zeros(static_cast<size_t>(total));
  check("comoments_update", zeros,
        [&](double* at, int threads) { pf::PF_ISA::comoments_update(totals(at), threads); });
  check("fused_draw", zeros, [&](double* at, int threads) {
    std::vector<float> w = params0;
    pf::PF_ISA::fused_draw(per_sample(w.data()), totals(at), threads);
  });

  const int64_t few = 301;
  check("loss_comoments_update", std::vector<double>(size_t(groups * (1 + few + few * few))), [&](double* at, int threads) {
    pf::PF_ISA::loss_comoments_update({loss.data(), loss_shift.data(), group_of.data(), at, at + groups,
                                       at + groups + groups * few, chains, few, groups}, threads);
  });

  const int64_t tokens = 700, width = 33, vocabulary = 1001;
  const std::vector<float> hidden = normals(tokens * width), unembedding = normals(vocabulary * width);
  const std::vector<float> logits = normals(tokens * vocabulary), weights = normals(tokens);
  const std::vector<int64_t> labels = integers(tokens, vocabulary);
  check("linear_cross_entropy", std::vector<float>(size_t(tokens + (tokens + vocabulary) * width)), [&](float* at, int threads) {
    pf::PF_ISA::linear_cross_entropy({hidden.data(), unembedding.data(), labels.data(), weights.data(), nullptr, nullptr,
                                      at, at + tokens, at + tokens + tokens * width, nullptr, -100, 1, tokens, width,
                                      vocabulary, 1, 0}, threads);
  });
  check("linear_cross_entropy, offset", std::vector<float>(size_t(2 * tokens + (tokens + vocabulary) * width)), [&](float* at, int threads) {
    pf::PF_ISA::linear_cross_entropy({hidden.data(), unembedding.data(), labels.data(), weights.data(), logits.data(),
                                      weights.data(), at, at + 2 * tokens, at + 2 * tokens + tokens * width, at + tokens,
                                      -100, 1, tokens, width, vocabulary, 1, 1}, threads);
  });
  check("weighted_cross_entropy", std::vector<float>(size_t(tokens + tokens * vocabulary)), [&](float* at, int threads) {
    pf::PF_ISA::weighted_cross_entropy({logits.data(), labels.data(), weights.data(), at, at + tokens, -100, tokens,
                                        vocabulary}, threads);
  });

  const int64_t in = 7, hidden_units = 3, many = 40, dense_chains = 23, of_model = 2 * in * hidden_units;
  const pf::DenseLayer layers[] = {{in, hidden_units, 0, -1, 0, pf::Activation::relu},
                                   {hidden_units, in, in * hidden_units, -1, 0, pf::Activation::identity}};
  const std::vector<float> base = normals(of_model), inputs = normals(many * in), many_normals = normals(dense_chains * of_model);
  const std::vector<float> small_lr(dense_chains, 1e-4f), ones(dense_chains, 1.0f);
  const std::vector<int64_t> whole(dense_chains, -1), origin(dense_chains, 0), dense_groups = integers(dense_chains, groups);
  std::vector<int64_t> dense_ids(dense_chains), dense_rows(dense_chains + 1);
  for (int64_t chain = 0; chain < dense_chains; ++chain) {
    dense_ids[size_t(chain)] = chain;
    dense_rows[size_t(chain) + 1] = (chain + 1) * of_model;
  }
  const pf::DenseStack stack{layers, base.data(), whole.data(), nullptr, inputs.data(), inputs.data(), nullptr, nullptr,
                             nullptr, 2, of_model, many, 0, 0};
  check("dense_losses", std::vector<float>(size_t(dense_chains * many)), [&](float* out, int threads) {
    pf::PF_ISA::dense_losses({stack, many_normals.data(), dense_rows.data(), out, many, dense_chains,
                              dense_chains * of_model}, threads);
  });
  check("dense_draws", std::vector<double>(size_t(groups * (1 + many + 1 + many + 1))), [&](double* at, int threads) {
    std::vector<float> w = many_normals, g(w.size()), distance(2 * dense_chains);
    std::vector<double> phis(2 * dense_chains);
    const pf::LangevinStep moves{w.data(), g.data(), base.data(), dense_rows.data(), origin.data(), small_lr.data(),
                                 ones.data(), ones.data(), ones.data(), dense_ids.data(), &seed, &step, nullptr, nullptr,
                                 nullptr, nullptr, nullptr, pf::LangevinRule::sgld, 0.0, 0.0, 0, dense_chains,
                                 dense_chains * of_model, of_model};
    const pf::ComomentsUpdate into{nullptr, nullptr, loss_shift.data(), phi_shift.data(), dense_groups.data(), at,
                                   at + groups, at + groups * (1 + many), at + groups * (2 + many),
                                   at + groups * (2 + 2 * many), dense_chains, many, 1, groups};
    pf::PF_ISA::dense_draws({{stack, moves, dense_ids.data(), 16, 3, 0}, stack, into, loss_shift.data(), phis.data(),
                             distance.data(), nullptr, 0, many, 2, 1e30}, threads);
  });
  return failures;
}
