// A launch of a plan on small tensors: the loops of the CPU operator, on tensors that lie in a list of Python's,
// without PyTorch's dispatcher, which takes longer than the loops. pybind11, no torch.
#pragma once

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <cstring>
#include <numeric>
#include <optional>
#include <stdexcept>
#include <vector>

#include "cpu/dispatch.h"
#include "dlpack.h"

namespace fastdiff {

inline std::optional<Dtype> dtype_of(const dlpack::Tensor& view) {
  if (view.lanes != 1) return std::nullopt;
  if (view.code == dlpack::kBFloat && view.bits == 16) return Dtype::kBFloat16;
  if (view.code != dlpack::kFloat) return std::nullopt;
  if (view.bits == 64) return Dtype::kDouble;
  if (view.bits == 32) return Dtype::kFloat;
  return view.bits == 16 ? std::optional(Dtype::kHalf) : std::nullopt;
}

// Looks at plain CPU tensors of the type of one.
class Lender {
 public:
  explicit Lender(const pybind11::object& tensor) : kind_(Py_TYPE(tensor.ptr())) {
    const pybind11::object exchange = pybind11::type::of(tensor).attr("__dlpack_c_exchange_api__");
    api_ = static_cast<const dlpack::Exchange*>(PyCapsule_GetPointer(exchange.ptr(), "dlpack_exchange_api"));
    if (api_ == nullptr) throw pybind11::error_already_set();
    if (api_->major != 1 || api_->look == nullptr) throw std::invalid_argument("fastdiff: another DLPack than 1");
  }

  bool look(pybind11::handle tensor, dlpack::Tensor& view) const {
    if (Py_TYPE(tensor.ptr()) != kind_) return false;
    if (api_->look(tensor.ptr(), &view) != 0) {
      PyErr_Clear();
      return false;
    }
    return view.device_type == dlpack::kCpu && view.byte_offset == 0 && view.strides != nullptr;
  }

 private:
  PyTypeObject* kind_;
  const dlpack::Exchange* api_;
};

class SmallLaunch {
 public:
  // `table` [V, W] and `like`, contiguous tensors of the outputs' shape and dtypes: both kept. `make` makes a tensor
  // like another. Inputs, outputs and `rows` are places in the list of a run. At `rows` (-1: sample b reads row 0) lie
  // the rows of the samples, B numbers; with `measured` V - 1 lists of B numbers m, and sample b reads
  // table[0] + sum_v m[v][b] table[v + 1]. With `squares` the one output is a list of B sums of squares.
  SmallLaunch(const pybind11::object& table, std::vector<int> inputs, const std::vector<std::uint32_t>& draws,
              std::vector<pybind11::object> like, std::vector<int> outputs, bool clip, pybind11::object make, int rows,
              bool measured, bool squares)
      : table_(table),
        like_(std::move(like)),
        make_(std::move(make)),
        inputs_(std::move(inputs)),
        outputs_(std::move(outputs)),
        rows_(rows),
        measured_(measured),
        squares_(squares),
        lender_(table) {
    if (inputs_.size() > kMaxInputs || draws.size() > kMaxDraws || outputs_.size() > kMaxOutputs || outputs_.empty() ||
        like_.size() != outputs_.size()) {
      throw std::invalid_argument("fastdiff: too many inputs, draws or outputs for a launch");
    }
    for (const Py_ssize_t place : inputs_) least_ = std::max(least_, place < 0 ? PY_SSIZE_T_MAX : place + 1);
    for (const Py_ssize_t place : outputs_) least_ = std::max(least_, place < 0 ? PY_SSIZE_T_MAX : place + 1);
    least_ = std::max(least_, static_cast<Py_ssize_t>(rows_) + 1);
    dlpack::Tensor view;
    if (!lender_.look(like_[0], view) || view.ndim < 1)
      throw std::invalid_argument("fastdiff: like must be CPU tensors");
    shape_.assign(view.shape, view.shape + view.ndim);
    job_.batch = shape_[0];
    job_.elements = 1;
    for (std::size_t i = 1; i < shape_.size(); ++i) job_.elements *= shape_[i];

    job_.inputs = static_cast<int>(inputs_.size());
    job_.draws = static_cast<int>(draws.size());
    std::copy(draws.begin(), draws.end(), job_.draw_numbers);
    job_.layout = {job_.inputs + job_.draws, static_cast<int>(outputs_.size()), clip, false};
    if (!lender_.look(table, view) || view.ndim != 2 || view.shape[0] < 1 || view.shape[1] != job_.layout.width() ||
        (view.shape[1] != 1 && view.strides[1] != 1) || (view.shape[0] != 1 && view.strides[0] != view.shape[1])) {
      throw std::invalid_argument("fastdiff: table must be [V, W] on the CPU, of contiguous rows");
    }
    count_ = view.shape[0];
    if (squares && (outputs_.size() != 1 || clip)) throw std::invalid_argument("fastdiff: squares are of one sum");
    const std::optional<Dtype> compute = dtype_of(view);
    if (compute != Dtype::kFloat && compute != Dtype::kDouble) throw std::invalid_argument("fastdiff: table's dtype");
    job_.compute = *compute;
    job_.table = view.data;
  }

  // Whether it may run: the operator would keep it on the calling thread too. Not samples that are numbers: among their
  // strides those of a lazily negated tensor, an imaginary part, cannot be told.
  bool pays() const { return job_.batch > 0 && job_.elements > 1 && job_.batch * job_.elements <= grain_of(job_); }

  // Launch `next`, which is kept, follows at once.
  void then(const pybind11::object& next) {
    next_ = next;
    following_ = next.cast<const SmallLaunch*>();
  }

  // This launch and those that follow it at once: how many of them were done.
  int run(const pybind11::list& slots, const pybind11::object& seeds) const {
    int done = 0;
    for (const SmallLaunch* one = this; one != nullptr && one->run_one(slots, seeds); one = one->following_) ++done;
    return done;
  }

 private:
  // Reads and writes `slots`. False, with nothing done, if there is anything that the operator must see to: another
  // dtype, device, shape, subclass or memory layout than those of a plan's own tensors.
  bool run_one(const pybind11::list& slots, const pybind11::object& seeds) const {
    PyObject* const list = slots.ptr();
    if (PyList_GET_SIZE(list) < least_) return false;
    Job job = job_;
    pybind11::object made[kMaxOutputs];
    dlpack::Tensor view;
    const int written = squares_ ? 0 : job.layout.outputs;
    for (int m = 0; m < written; ++m) {  // first, as it is the only thing here that runs Python
      made[m] = pybind11::reinterpret_steal<pybind11::object>(PyObject_CallOneArg(make_.ptr(), like_[m].ptr()));
      if (!made[m]) throw pybind11::error_already_set();
      Column column;
      if (!read(made[m], job, column) || column.stride != job.elements) return false;
      job.outputs[m] = {const_cast<void*>(column.data), column.dtype};
    }
    for (int j = 0; j < job.inputs; ++j) {
      if (!read(PyList_GET_ITEM(list, inputs_[j]), job, job.columns[j])) return false;
      if (job.columns[j].dtype == Dtype::kDouble && job.compute == Dtype::kFloat) return false;
    }
    if (job.draws > 0) {
      if (!lender_.look(seeds, view) || view.code != dlpack::kInt || view.bits != 64 || view.ndim != 1 ||
          view.shape[0] != job.batch || (job.batch > 1 && view.strides[0] != 1)) {
        return false;
      }
      job.seeds = static_cast<const std::int64_t*>(view.data);
    }
    std::vector<std::int64_t> rows;
    std::vector<double> table;
    if (rows_ >= 0) {
      PyObject* const told = PyList_GET_ITEM(list, rows_);
      const bool fits = measured_
                            ? (job.compute == Dtype::kFloat ? mix(told, static_cast<const float*>(job.table), table)
                                                            : mix(told, static_cast<const double*>(job.table), table))
                            : choose(told, rows);
      if (!fits) return false;
      if (measured_) {
        job.table = table.data();
        rows.resize(job.batch);
        std::iota(rows.begin(), rows.end(), 0);
      }
      job.rows = rows.data();
    }
    const Kernels& loops = kernels();
    if (squares_) {
      pybind11::list sums(job.batch);
      for (std::int64_t b = 0; b < job.batch; ++b) {
        double sum = 0;
        for (std::int64_t at = 0; at < job.elements; at += kSumBlock) {
          sum += loops.sum_squares(job, b, at, std::min(job.elements, at + kSumBlock));
        }
        PyList_SET_ITEM(sums.ptr(), b, pybind11::float_(sum).release().ptr());
      }
      if (PyList_SetItem(list, outputs_[0], sums.release().ptr()) != 0) throw pybind11::error_already_set();
      return true;
    }
    for (std::int64_t b = 0; b < job.batch; ++b) loops.combine(job, b, 0, job.elements);
    for (int m = 0; m < written; ++m) {
      if (PyList_SetItem(list, outputs_[m], made[m].release().ptr()) != 0) throw pybind11::error_already_set();
    }
    return true;
  }

  // A list of the rows of all samples.
  bool choose(PyObject* told, std::vector<std::int64_t>& rows) const {
    if (!PyList_CheckExact(told) || PyList_GET_SIZE(told) != job_.batch) return false;
    for (Py_ssize_t b = 0; b < job_.batch; ++b) {
      rows.push_back(PyLong_AsLongLong(PyList_GET_ITEM(told, b)));
      if (rows.back() < 0 || rows.back() >= count_) {
        PyErr_Clear();
        return false;
      }
    }
    return true;
  }

  // A row of coefficients for every sample, of type T, in the memory of `made`.
  template <class T>
  bool mix(PyObject* told, const T* rows, std::vector<double>& made) const {
    if (!PyList_CheckExact(told) || PyList_GET_SIZE(told) != count_ - 1) return false;
    const int width = job_.layout.width();
    made.resize(job_.batch * width);
    T* const mixed = reinterpret_cast<T*>(made.data());
    for (std::int64_t b = 0; b < job_.batch; ++b) std::copy_n(rows, width, mixed + b * width);
    for (std::int64_t v = 1; v < count_; ++v) {
      PyObject* const numbers = PyList_GET_ITEM(told, v - 1);
      if (!PyList_CheckExact(numbers) || PyList_GET_SIZE(numbers) != job_.batch) return false;
      for (std::int64_t b = 0; b < job_.batch; ++b) {
        const T number = static_cast<T>(PyFloat_AsDouble(PyList_GET_ITEM(numbers, b)));
        if (PyErr_Occurred() != nullptr) {
          PyErr_Clear();
          return false;
        }
        for (int w = 0; w < width; ++w) {
          mixed[b * width + w] = add(mixed[b * width + w], mul(number, rows[v * width + w]));
        }
      }
    }
    return true;
  }

  // One of the launch's shape and with contiguous samples.
  bool read(pybind11::handle tensor, const Job& job, Column& column) const {
    dlpack::Tensor view;
    if (!lender_.look(tensor, view) || static_cast<std::size_t>(view.ndim) != shape_.size() ||
        std::memcmp(view.shape, shape_.data(), shape_.size() * sizeof(std::int64_t)) != 0) {
      return false;
    }
    std::int64_t expected = 1;
    for (std::size_t i = shape_.size(); i-- > 1;) {
      if (shape_[i] != 1 && view.strides[i] != expected) return false;
      expected *= shape_[i];
    }
    const std::optional<Dtype> dtype = dtype_of(view);
    if (!dtype) return false;
    column = {view.data, job.batch > 1 ? view.strides[0] : job.elements, *dtype};
    return true;
  }

  pybind11::object next_;
  const SmallLaunch* following_ = nullptr;
  pybind11::object table_;
  std::vector<pybind11::object> like_;
  pybind11::object make_;
  std::vector<int> inputs_, outputs_;
  int rows_;
  bool measured_, squares_;
  std::int64_t count_ = 1;  // V
  Py_ssize_t least_ = 0;    // places that a list must have
  Lender lender_;
  std::vector<std::int64_t> shape_;
  Job job_{};
};

}  // namespace fastdiff
