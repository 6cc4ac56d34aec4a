// The Python face of the CUDA kernels: an op's fields, its workspace, the device and the stream, as integers.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <stdexcept>
#include <string>
#include <vector>

#include "bindings/cuda_forms.h"
#include "bindings/read.h"
#include "dense_stack/dense_plan.h"
#include "langevin_step/row_pieces.h"

namespace py = pybind11;

namespace {

// A device's stream, as Python names it.
struct Place {
  int device;
  uintptr_t stream;
};

// Runs launch(stream) with the device current; throws where CUDA says no.
template <class Launch>
void launch_at(const Place& place, const char* op, const Launch& launch) {
  cudaError_t error = cudaSetDevice(place.device);
  if (error == cudaSuccess) error = launch(reinterpret_cast<cudaStream_t>(place.stream));
  if (error != cudaSuccess)
    throw std::runtime_error(std::string(op) + ": " + cudaGetErrorName(error) + ", " + cudaGetErrorString(error));
}

template <class T>
T* at_address(uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

}  // namespace

PYBIND11_MODULE(_C_cuda, m) {
  m.def("build_info", [] {
    py::dict info;
    info["nvcc"] = PF_NVCC;
    info["architectures"] = std::vector<std::string>{PF_ARCHITECTURES};
    return info;
  });

  // For tests, of how a grid finds the pieces of rows: (row, begin, count) of every slot.
  m.def("row_pieces", [](const std::vector<int64_t>& row_starts) {
    const int64_t rows = int64_t(row_starts.size()) - 1;
    std::vector<py::tuple> pieces;
    for (int64_t slot = 0; slot < pf::row_slots(row_starts.back(), rows); ++slot) {
      const pf::RowPiece piece = pf::piece_in_slot(row_starts.data(), rows, slot);
      pieces.push_back(py::make_tuple(piece.row, piece.begin, piece.count));
    }
    return pieces;
  });

  // For tests, of what a chain of a dense stack takes where a block may have so many bytes of shared memory: what steps
  // of it keep, in floats, and how.
  m.def("dense_plan", [](const py::tuple& stack, int64_t batch, int64_t steps, int64_t whole, int64_t half) {
    const pf::cuda::DensePlan plan =
        pf::cuda::dense_plan(pf::read_dense_stack(stack), batch, steps, pf::cuda::DenseUse::steps, {whole, half});
    py::dict found;
    found["threads"] = plan.threads;
    found["columns"] = plan.columns;
    found["stride"] = plan.stride;
    found["shared"] = plan.shared;
    found["workspace"] = plan.workspace;
    return found;
  });

  m.def("normal", [](const py::tuple& fields, int device, uintptr_t stream) {
    const pf::Normal op = pf::read_normal(fields);
    launch_at({device, stream}, "normal_", [&](cudaStream_t on) { return pf::cuda::normal(op, on); });
  });

  m.def("langevin_step_sums",
        [](const py::tuple& fields) { return pf::cuda::langevin_step_sums(pf::read_langevin_step(fields)); });
  m.def("langevin_step", [](const py::tuple& fields, uintptr_t piece_sums, int device, uintptr_t stream) {
    const pf::LangevinStep op = pf::read_langevin_step(fields);
    launch_at({device, stream}, "langevin_step", [&](cudaStream_t on) {
      return pf::cuda::langevin_step(op, at_address<double>(piece_sums), on);
    });
  });

  m.def("per_sample_sums",
        [](const py::tuple& fields) { return pf::cuda::per_sample_sums(pf::read_per_sample_langevin_step(fields)); });
  m.def("per_sample_langevin_step",
        [](const py::tuple& fields, uintptr_t piece_sums, uintptr_t arrivals, int device, uintptr_t stream) {
          const pf::PerSampleLangevinStep op = pf::read_per_sample_langevin_step(fields);
          launch_at({device, stream}, "per_sample_langevin_step", [&](cudaStream_t on) {
            return pf::cuda::per_sample_langevin_step(op, at_address<double>(piece_sums),
                                                      at_address<unsigned>(arrivals), on);
          });
        });

  m.def("comoments_update", [](const py::tuple& fields, int device, uintptr_t stream) {
    const pf::ComomentsUpdate op = pf::read_comoments_update(fields);
    launch_at({device, stream}, "comoments_update",
              [&](cudaStream_t on) { return pf::cuda::comoments_update(op, on); });
  });

  m.def("loss_comoments_update", [](const py::tuple& fields, int device, uintptr_t stream) {
    const pf::LossComomentsUpdate op = pf::read_loss_comoments_update(fields);
    launch_at({device, stream}, "loss_comoments_update",
              [&](cudaStream_t on) { return pf::cuda::loss_comoments_update(op, on); });
  });

  m.def("fused_draw", [](const py::tuple& step_fields, const py::tuple& comoments_fields, uintptr_t piece_sums,
                         uintptr_t arrivals, int device, uintptr_t stream) {
    const pf::PerSampleLangevinStep step = pf::read_per_sample_langevin_step(step_fields);
    const pf::ComomentsUpdate comoments = pf::read_comoments_update(comoments_fields);
    launch_at({device, stream}, "fused_draw", [&](cudaStream_t on) {
      return pf::cuda::fused_draw(step, comoments, at_address<double>(piece_sums), at_address<unsigned>(arrivals), on);
    });
  });

  m.def("linear_cross_entropy", [](const py::tuple& fields, uintptr_t exponentials, int device, uintptr_t stream) {
    const pf::LinearCrossEntropy op = pf::read_linear_cross_entropy(fields);
    launch_at({device, stream}, "linear_cross_entropy", [&](cudaStream_t on) {
      return pf::cuda::linear_cross_entropy(op, at_address<float>(exponentials), on);
    });
  });

  m.def("weighted_cross_entropy", [](const py::tuple& fields, int device, uintptr_t stream) {
    const pf::WeightedCrossEntropy op = pf::read_weighted_cross_entropy(fields);
    launch_at({device, stream}, "weighted_cross_entropy",
              [&](cudaStream_t on) { return pf::cuda::weighted_cross_entropy(op, on); });
  });

  m.def("dense_losses_workspace", [](const py::tuple& stack, const py::tuple& fields, int device) {
    const pf::DenseLosses op = pf::read_dense_losses(stack, fields);
    int64_t floats = 0;
    launch_at({device, 0}, "dense_losses", [&](cudaStream_t) { return pf::cuda::dense_losses_workspace(op, floats); });
    return floats;
  });
  m.def("dense_losses", [](const py::tuple& stack, const py::tuple& fields, uintptr_t layers, uintptr_t workspace,
                           int device, uintptr_t stream) {
    const pf::DenseLosses op = pf::read_dense_losses(stack, fields);
    launch_at({device, stream}, "dense_losses", [&](cudaStream_t on) {
      return pf::cuda::dense_losses(op, at_address<pf::DenseLayer>(layers), at_address<float>(workspace), on);
    });
  });

  m.def("dense_steps_workspace",
        [](const py::tuple& stack, const py::tuple& step, const py::tuple& fields, int device) {
          const pf::DenseSteps op = pf::read_dense_steps(stack, step, fields);
          int64_t floats = 0;
          launch_at({device, 0}, "dense_steps",
                    [&](cudaStream_t) { return pf::cuda::dense_steps_workspace(op, floats); });
          return floats;
        });
  m.def("dense_steps", [](const py::tuple& stack, const py::tuple& step, const py::tuple& fields, uintptr_t layers,
                          uintptr_t workspace, int device, uintptr_t stream) {
    const pf::DenseSteps op = pf::read_dense_steps(stack, step, fields);
    launch_at({device, stream}, "dense_steps", [&](cudaStream_t on) {
      return pf::cuda::dense_steps(op, at_address<pf::DenseLayer>(layers), at_address<float>(workspace), on);
    });
  });
}
