// A launch of a plan on small tensors: the loops of the CPU operator, on tensors that lie in a list of Python's,
// without PyTorch's dispatcher, which takes longer than the loops. pybind11, no torch.
#pragma once

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <cstring>
#include <optional>
#include <stdexcept>
#include <vector>

#include "cpu/dispatch.h"
#include "dlpack.h"

namespace fastdiff {

class SmallLaunch {
 public:
  // `table` [1, W] and `like`, contiguous tensors of the outputs' shape and dtypes: both kept. `make` makes a tensor
  // like another. Inputs and outputs are places in the list of a run.
  SmallLaunch(const pybind11::object& table, std::vector<int> inputs, const std::vector<std::uint32_t>& draws,
              std::vector<pybind11::object> like, std::vector<int> outputs, bool clip, pybind11::object make)
      : table_(table),
        like_(std::move(like)),
        make_(std::move(make)),
        inputs_(std::move(inputs)),
        outputs_(std::move(outputs)),
        kind_(Py_TYPE(table.ptr())) {
    if (inputs_.size() > kMaxInputs || draws.size() > kMaxDraws || outputs_.size() > kMaxOutputs || outputs_.empty() ||
        like_.size() != outputs_.size()) {
      throw std::invalid_argument("fastdiff: too many inputs, draws or outputs for a launch");
    }
    for (const Py_ssize_t place : inputs_) least_ = std::max(least_, place < 0 ? PY_SSIZE_T_MAX : place + 1);
    for (const Py_ssize_t place : outputs_) least_ = std::max(least_, place < 0 ? PY_SSIZE_T_MAX : place + 1);
    const pybind11::object exchange = pybind11::type::of(table).attr("__dlpack_c_exchange_api__");
    api_ = static_cast<const dlpack::Exchange*>(PyCapsule_GetPointer(exchange.ptr(), "dlpack_exchange_api"));
    if (api_ == nullptr) throw pybind11::error_already_set();
    if (api_->major != 1 || api_->look == nullptr) throw std::invalid_argument("fastdiff: another DLPack than 1");

    dlpack::Tensor view;
    if (!look(like_[0], view) || view.ndim < 1) throw std::invalid_argument("fastdiff: like must be CPU tensors");
    shape_.assign(view.shape, view.shape + view.ndim);
    job_.batch = shape_[0];
    job_.elements = 1;
    for (std::size_t i = 1; i < shape_.size(); ++i) job_.elements *= shape_[i];

    job_.inputs = static_cast<int>(inputs_.size());
    job_.draws = static_cast<int>(draws.size());
    std::copy(draws.begin(), draws.end(), job_.draw_numbers);
    job_.layout = {job_.inputs + job_.draws, static_cast<int>(outputs_.size()), clip, false};
    if (!look(table, view) || view.ndim != 2 || view.shape[0] != 1 || view.shape[1] != job_.layout.width() ||
        (view.shape[1] != 1 && view.strides[1] != 1)) {
      throw std::invalid_argument("fastdiff: table must be [1, W] on the CPU");
    }
    const std::optional<Dtype> compute = dtype_of(view);
    if (compute != Dtype::kFloat && compute != Dtype::kDouble) throw std::invalid_argument("fastdiff: table's dtype");
    job_.compute = *compute;
    job_.table = view.data;
  }

  // Whether it may run: the operator would keep it on the calling thread too. Not samples that are numbers: among their
  // strides those of a lazily negated tensor, an imaginary part, cannot be told.
  bool pays() const { return job_.batch > 0 && job_.elements > 1 && job_.batch * job_.elements <= grain_of(job_); }

  // Reads and writes `slots`. False, with nothing done, if there is anything that the operator must see to: another
  // dtype, device, shape, subclass or memory layout than those of a plan's own tensors.
  bool run(const pybind11::list& slots, const pybind11::object& seeds) const {
    PyObject* const list = slots.ptr();
    if (PyList_GET_SIZE(list) < least_) return false;
    Job job = job_;
    pybind11::object made[kMaxOutputs];
    dlpack::Tensor view;
    for (int m = 0; m < job.layout.outputs; ++m) {  // first, as it is the only thing here that runs Python
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
      if (!look(seeds, view) || view.code != dlpack::kInt || view.bits != 64 || view.ndim != 1 ||
          view.shape[0] != job.batch || (job.batch > 1 && view.strides[0] != 1)) {
        return false;
      }
      job.seeds = static_cast<const std::int64_t*>(view.data);
    }
    const Kernels& loops = kernels();
    for (std::int64_t b = 0; b < job.batch; ++b) loops.combine(job, b, 0, job.elements);
    for (int m = 0; m < job.layout.outputs; ++m) {
      if (PyList_SetItem(list, outputs_[m], made[m].release().ptr()) != 0) throw pybind11::error_already_set();
    }
    return true;
  }

 private:
  static std::optional<Dtype> dtype_of(const dlpack::Tensor& view) {
    if (view.lanes != 1) return std::nullopt;
    if (view.code == dlpack::kBFloat && view.bits == 16) return Dtype::kBFloat16;
    if (view.code != dlpack::kFloat) return std::nullopt;
    if (view.bits == 64) return Dtype::kDouble;
    if (view.bits == 32) return Dtype::kFloat;
    return view.bits == 16 ? std::optional(Dtype::kHalf) : std::nullopt;
  }

  // A plain CPU tensor.
  bool look(pybind11::handle tensor, dlpack::Tensor& view) const {
    if (Py_TYPE(tensor.ptr()) != kind_) return false;
    if (api_->look(tensor.ptr(), &view) != 0) {
      PyErr_Clear();
      return false;
    }
    return view.device_type == dlpack::kCpu && view.byte_offset == 0 && view.strides != nullptr;
  }

  // One of the launch's shape and with contiguous samples.
  bool read(pybind11::handle tensor, const Job& job, Column& column) const {
    dlpack::Tensor view;
    if (!look(tensor, view) || static_cast<std::size_t>(view.ndim) != shape_.size() ||
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

  pybind11::object table_;
  std::vector<pybind11::object> like_;
  pybind11::object make_;
  std::vector<int> inputs_, outputs_;
  Py_ssize_t least_ = 0;  // places that a list must have
  PyTypeObject* kind_;
  const dlpack::Exchange* api_;
  std::vector<std::int64_t> shape_;
  Job job_{};
};

}  // namespace fastdiff
