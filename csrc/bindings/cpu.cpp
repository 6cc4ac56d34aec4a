// The Python face of the CPU kernels.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdlib>
#include <stdexcept>
#include <string>
#include <vector>

#include "bindings/cpu_forms.h"
#include "bindings/read.h"
#include "core/philox.h"

namespace py = pybind11;

namespace {

// What this machine can run, the best last.
std::vector<const pf::CpuForms*> available_forms() {
  std::vector<const pf::CpuForms*> forms = {&pf::baseline::forms};
#ifdef PF_X86
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) forms.push_back(&pf::avx2::forms);
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
      __builtin_cpu_supports("avx512bw"))
    forms.push_back(&pf::avx512::forms);
#endif
  return forms;
}

const pf::CpuForms* forms_named(const std::string& isa, const std::string& asked_by) {
  std::string names;
  for (const pf::CpuForms* forms : available_forms()) {
    if (isa == forms->isa) return forms;
    names += std::string(names.empty() ? "" : ", ") + forms->isa;
  }
  throw std::runtime_error(asked_by + " is '" + isa + "'; this machine can run: " + names);
}

const pf::CpuForms*& forms() {
  static const char* const wanted = std::getenv("PATTERNING_FAST_ISA");
  static const pf::CpuForms* chosen = wanted ? forms_named(wanted, "PATTERNING_FAST_ISA") : available_forms().back();
  return chosen;
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  forms();  // a wrong PATTERNING_FAST_ISA is an error at import, not in the middle of a run

  m.def("build_info", [] {
    std::vector<std::string> isas;
    for (const pf::CpuForms* each : available_forms()) isas.emplace_back(each->isa);
    py::dict info;
    info["isa"] = forms()->isa;
    info["isas"] = isas;
    info["compiler"] = PF_COMPILER;
    info["openmp"] = _OPENMP;
    return info;
  });

  // For tests, which run every instruction set in one process.
  m.def("use_isa", [](const std::string& isa) { forms() = forms_named(isa, "isa"); });

  m.def("philox4x32", [](uint32_t x, uint32_t y, uint32_t z, uint32_t w, uint32_t key_lo, uint32_t key_hi) {
    const pf::Words4 out = pf::philox4x32({x, y, z, w}, key_lo, key_hi);
    return py::make_tuple(out.x, out.y, out.z, out.w);
  });

  m.def("langevin_step", [](const py::tuple& fields, int threads) {
    const pf::LangevinStep op = pf::read_langevin_step(fields);
    py::gil_scoped_release unlocked;
    return int(forms()->langevin_step(op, threads));
  });

  m.def("per_sample_langevin_step", [](const py::tuple& fields, int threads) {
    const pf::PerSampleLangevinStep op = pf::read_per_sample_langevin_step(fields);
    py::gil_scoped_release unlocked;
    forms()->per_sample_langevin_step(op, threads);
  });

  m.def("comoments_update", [](const py::tuple& fields, int threads) {
    const pf::ComomentsUpdate op = pf::read_comoments_update(fields);
    py::gil_scoped_release unlocked;
    return int(forms()->comoments_update(op, threads));
  });

  m.def("loss_comoments_update", [](const py::tuple& fields, int threads) {
    const pf::LossComomentsUpdate op = pf::read_loss_comoments_update(fields);
    py::gil_scoped_release unlocked;
    return int(forms()->loss_comoments_update(op, threads));
  });

  m.def("fused_draw", [](const py::tuple& step_fields, const py::tuple& comoments_fields, int threads) {
    const pf::PerSampleLangevinStep step = pf::read_per_sample_langevin_step(step_fields);
    const pf::ComomentsUpdate comoments = pf::read_comoments_update(comoments_fields);
    py::gil_scoped_release unlocked;
    return int(forms()->fused_draw(step, comoments, threads));
  });

  m.def("linear_cross_entropy", [](const py::tuple& fields, int threads) {
    const pf::LinearCrossEntropy op = pf::read_linear_cross_entropy(fields);
    py::gil_scoped_release unlocked;
    return int(forms()->linear_cross_entropy(op, threads));
  });

  m.def("weighted_cross_entropy", [](const py::tuple& fields, int threads) {
    const pf::WeightedCrossEntropy op = pf::read_weighted_cross_entropy(fields);
    py::gil_scoped_release unlocked;
    return int(forms()->weighted_cross_entropy(op, threads));
  });

  m.def("rotary_attention", [](const py::tuple& fields, int threads) {
    const pf::RotaryAttention op = pf::read_rotary_attention(fields);
    py::gil_scoped_release unlocked;
    forms()->rotary_attention(op, threads);
  });

  m.def("rotary_attention_gradient", [](const py::tuple& fields, int threads) {
    const pf::RotaryAttentionGradient op = pf::read_rotary_attention_gradient(fields);
    py::gil_scoped_release unlocked;
    forms()->rotary_attention_gradient(op, threads);
  });

  m.def("dense_losses", [](const py::tuple& stack, const py::tuple& fields, int threads) {
    const pf::DenseLosses op = pf::read_dense_losses(stack, fields);
    py::gil_scoped_release unlocked;
    forms()->dense_losses(op, threads);
  });

  m.def("dense_steps", [](const py::tuple& stack, const py::tuple& step, const py::tuple& fields, int threads) {
    const pf::DenseSteps op = pf::read_dense_steps(stack, step, fields);
    py::gil_scoped_release unlocked;
    forms()->dense_steps(op, threads);
  });

  m.def("dense_draws", [](const py::tuple& stack, const py::tuple& step, const py::tuple& fields,
                          const py::tuple& evaluated, const py::tuple& comoments, const py::tuple& draws, int threads) {
    const pf::DenseDraws op = pf::read<pf::DenseDraws, 8>(draws, pf::read_dense_steps(stack, step, fields),
                                                          pf::read_dense_stack(evaluated),
                                                          pf::read_comoments_update(comoments));
    py::gil_scoped_release unlocked;
    forms()->dense_draws(op, threads);
  });

  m.def("normal", [](const py::tuple& fields, int threads) {
    const pf::Normal op = pf::read_normal(fields);
    py::gil_scoped_release unlocked;
    forms()->normal(op, threads);
  });
}
