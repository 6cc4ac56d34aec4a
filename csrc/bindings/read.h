// How a launch crosses from Python: the fields of an op's struct in their order, addresses and flags as integers.
// Nothing is checked here; python/patterning_fast/ops checks.
#pragma once
#include <pybind11/pybind11.h>

#include <cstdint>
#include <string>
#include <utility>

#include "dense_stack/dense_stack.h"
#include "fused_draw/fused_draw.h"
#include "langevin_step/langevin_step.h"
#include "normal/normal.h"
#include "rotary_attention/rotary_attention.h"
#include "weighted_cross_entropy/weighted_cross_entropy.h"

namespace pf {

// Becomes whatever type the struct has in this place.
struct Field {
  PyObject* value;

  template <class T>
  operator T*() const {
    return reinterpret_cast<T*>(uintptr_t(PyLong_AsSize_t(value)));
  }
  operator int64_t() const { return PyLong_AsLongLong(value); }
  operator int() const { return int(PyLong_AsLong(value)); }
  operator double() const { return PyFloat_AsDouble(value); }
  operator LangevinRule() const { return LangevinRule(PyLong_AsLong(value)); }
};

template <class Op, size_t... at, class... First>
Op read_fields(PyObject* fields, std::index_sequence<at...>, const First&... first) {
  return Op{first..., Field{PyTuple_GET_ITEM(fields, at)}...};
}

// The struct whose `count` fields, after the first ones given, are the tuple's; throws where there are not as many, or
// one is no number.
template <class Op, size_t count, class... First>
Op read(const pybind11::tuple& fields, const First&... first) {
  if (fields.size() != count)
    throw pybind11::type_error("an op of " + std::to_string(count) + " fields got " + std::to_string(fields.size()));
  Op op = read_fields<Op>(fields.ptr(), std::make_index_sequence<count>(), first...);
  if (PyErr_Occurred()) throw pybind11::error_already_set();
  return op;
}

inline LangevinStep read_langevin_step(const pybind11::tuple& fields) { return read<LangevinStep, 24>(fields); }
inline PerSampleLangevinStep read_per_sample_langevin_step(const pybind11::tuple& fields) {
  return read<PerSampleLangevinStep, 18>(fields);
}
inline ComomentsUpdate read_comoments_update(const pybind11::tuple& fields) { return read<ComomentsUpdate, 14>(fields); }
inline LossComomentsUpdate read_loss_comoments_update(const pybind11::tuple& fields) {
  return read<LossComomentsUpdate, 9>(fields);
}
inline Normal read_normal(const pybind11::tuple& fields) { return read<Normal, 6>(fields); }
inline LinearCrossEntropy read_linear_cross_entropy(const pybind11::tuple& fields) {
  return read<LinearCrossEntropy, 17>(fields);
}
inline WeightedCrossEntropy read_weighted_cross_entropy(const pybind11::tuple& fields) {
  return read<WeightedCrossEntropy, 8>(fields);
}
inline DenseStack read_dense_stack(const pybind11::tuple& fields) { return read<DenseStack, 14>(fields); }
inline DenseLosses read_dense_losses(const pybind11::tuple& stack, const pybind11::tuple& fields) {
  return read<DenseLosses, 6>(fields, read_dense_stack(stack));
}
inline DenseSteps read_dense_steps(const pybind11::tuple& stack, const pybind11::tuple& step,
                                   const pybind11::tuple& fields) {
  return read<DenseSteps, 4>(fields, read_dense_stack(stack), read_langevin_step(step));
}
inline RotaryAttention read_rotary_attention(const pybind11::tuple& fields) { return read<RotaryAttention, 9>(fields); }
inline RotaryAttentionGradient read_rotary_attention_gradient(const pybind11::tuple& fields) {
  return read<RotaryAttentionGradient, 11>(fields);
}

}  // namespace pf
