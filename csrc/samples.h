// What samples on a CPU are asked for by solvers, as lists of Python's: for few small ones an operation of PyTorch
// takes longer than the loop. pybind11, no torch.
#pragma once

#include <pybind11/pybind11.h>

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "small.h"

namespace fastdiff {

// Element i of a tensor in one dimension of contiguous memory.
inline double number_at(const dlpack::Tensor& view, std::int64_t i) {
  return view.bits == 64 ? static_cast<const double*>(view.data)[i] : static_cast<const float*>(view.data)[i];
}

inline bool is_plain(const dlpack::Tensor& view) {
  const std::optional<Dtype> dtype = dtype_of(view);
  std::int64_t expected = 1;
  for (int i = view.ndim; i-- > 0;) {
    if (view.shape[i] != 1 && view.strides[i] != expected) return false;
    expected *= view.shape[i];
  }
  return dtype == Dtype::kFloat || dtype == Dtype::kDouble;
}

// A tensor [B, ...] of B samples of `elements` each, if it is plain and they have some; else false.
inline bool samples_of(const pybind11::object& x, dlpack::Tensor& view, std::int64_t& elements) {
  if (!Lender(x).look(x, view) || view.ndim < 2 || !is_plain(view)) return false;
  elements = 1;
  for (int i = 1; i < view.ndim; ++i) elements *= view.shape[i];
  return elements > 0;
}

// The first element of every sample of x [B, ...], a list of B numbers. None if x is not plain.
inline pybind11::object first_elements(const pybind11::object& x) {
  dlpack::Tensor view;
  std::int64_t elements;
  if (!samples_of(x, view, elements)) return pybind11::none();
  pybind11::list found(view.shape[0]);
  for (std::int64_t b = 0; b < view.shape[0]; ++b) {
    PyList_SET_ITEM(found.ptr(), b, pybind11::float_(number_at(view, b * elements)).release().ptr());
  }
  return found;
}

// argmin over k of |var(x_b) - variances[k]| as a list of B numbers; x [B, ...] of two elements or more a sample. None
// if x is not plain: float32 or float64, contiguous, on the CPU. Sums are in float64.
inline pybind11::object nearest_variance(const pybind11::object& x, const std::vector<double>& variances) {
  dlpack::Tensor view;
  std::int64_t elements;
  if (!samples_of(x, view, elements) || elements < 2 || variances.empty()) return pybind11::none();
  pybind11::list chosen(view.shape[0]);
  for (std::int64_t b = 0; b < view.shape[0]; ++b) {
    double sum = 0, squares = 0;
    for (std::int64_t i = b * elements; i < (b + 1) * elements; ++i) {
      const double value = number_at(view, i);
      sum += value;
      squares += value * value;
    }
    const double n = static_cast<double>(elements);
    const double variance = (squares - sum * sum / n) / (n - 1);
    std::size_t nearest = 0;
    for (std::size_t k = 1; k < variances.size(); ++k) {
      if (std::abs(variance - variances[k]) < std::abs(variance - variances[nearest])) nearest = k;
    }
    PyList_SET_ITEM(chosen.ptr(), b, pybind11::int_(nearest).release().ptr());
  }
  return chosen;
}

}  // namespace fastdiff
