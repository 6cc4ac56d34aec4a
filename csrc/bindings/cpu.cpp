// The Python face of the CPU kernels: addresses and sizes in, nothing checked. python/patterning_fast/ops checks.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdlib>
#include <stdexcept>
#include <string>
#include <vector>

#include "bindings/cpu_forms.h"
#include "core/philox.h"

namespace py = pybind11;

namespace {

#define PF_FORMS(name) {#name, pf::name::langevin_step, pf::name::comoments_update}

// What this machine can run, the best last.
std::vector<pf::CpuForms> available_forms() {
  std::vector<pf::CpuForms> forms = {PF_FORMS(baseline)};
#ifdef PF_X86
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) forms.push_back(PF_FORMS(avx2));
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
      __builtin_cpu_supports("avx512bw"))
    forms.push_back(PF_FORMS(avx512));
#endif
  return forms;
}

pf::CpuForms chosen_forms() {
  const std::vector<pf::CpuForms> available = available_forms();
  const char* const wanted = std::getenv("PATTERNING_FAST_ISA");
  if (!wanted) return available.back();
  std::string names;
  for (const pf::CpuForms& forms : available) {
    if (std::string(wanted) == forms.isa) return forms;
    names += std::string(names.empty() ? "" : ", ") + forms.isa;
  }
  throw std::runtime_error("PATTERNING_FAST_ISA is '" + std::string(wanted) + "'; this machine can run: " + names);
}

const pf::CpuForms& forms() {
  static const pf::CpuForms chosen = chosen_forms();
  return chosen;
}

template <class T>
T* at(uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  forms();  // a wrong PATTERNING_FAST_ISA is an error at import, not in the middle of a run

  m.def("build_info", [] {
    std::vector<std::string> isas;
    for (const pf::CpuForms& each : available_forms()) isas.emplace_back(each.isa);
    py::dict info;
    info["isa"] = forms().isa;
    info["isas"] = isas;
    info["compiler"] = PF_COMPILER;
    info["openmp"] = _OPENMP;
    return info;
  });

  m.def("philox4x32", [](uint32_t x, uint32_t y, uint32_t z, uint32_t w, uint32_t key_lo, uint32_t key_hi) {
    const pf::Words4 out = pf::philox4x32({x, y, z, w}, key_lo, key_hi);
    return py::make_tuple(out.x, out.y, out.z, out.w);
  });

  m.def("langevin_step",
        [](uintptr_t params, uintptr_t grads, uintptr_t center, uintptr_t row_starts, uintptr_t center_starts,
           uintptr_t lr, uintptr_t n_beta, uintptr_t localization, uintptr_t noise_scale, uintptr_t chain_ids,
           int64_t chains, int64_t param_count, int64_t center_count, uintptr_t seed, uintptr_t step, int threads) {
          pf::LangevinStep op;
          op.params = at<float>(params);
          op.grads = at<float>(grads);
          op.center = at<const float>(center);
          op.row_starts = at<const int64_t>(row_starts);
          op.center_starts = at<const int64_t>(center_starts);
          op.lr = at<const float>(lr);
          op.n_beta = at<const float>(n_beta);
          op.localization = at<const float>(localization);
          op.noise_scale = at<const float>(noise_scale);
          op.chain_ids = at<const int64_t>(chain_ids);
          op.chains = chains;
          op.param_count = param_count;
          op.center_count = center_count;
          op.seed = at<const int64_t>(seed);
          op.step = at<const int64_t>(step);
          py::gil_scoped_release unlocked;
          return int(forms().langevin_step(op, threads));
        });

  m.def("comoments_update",
        [](uintptr_t losses, uintptr_t observables, uintptr_t loss_shift, uintptr_t observable_shift, uintptr_t groups,
           int64_t chains, int64_t loss_count, int64_t observable_count, int64_t group_count, uintptr_t count,
           uintptr_t loss_sum, uintptr_t observable_sum, uintptr_t cross, uintptr_t observable_square, int threads) {
          pf::ComomentsUpdate op;
          op.losses = at<const float>(losses);
          op.observables = at<const float>(observables);
          op.loss_shift = at<const float>(loss_shift);
          op.observable_shift = at<const float>(observable_shift);
          op.groups = at<const int64_t>(groups);
          op.chains = chains;
          op.loss_count = loss_count;
          op.observable_count = observable_count;
          op.group_count = group_count;
          op.count = at<double>(count);
          op.loss_sum = at<double>(loss_sum);
          op.observable_sum = at<double>(observable_sum);
          op.cross = at<double>(cross);
          op.observable_square = at<double>(observable_square);
          py::gil_scoped_release unlocked;
          return int(forms().comoments_update(op, threads));
        });
}
