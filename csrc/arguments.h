// The arguments of the operators: checked, then put into a Job. For the sources that register operators, whatever the
// device; LibTorch's stable ABI. A refusal names the operator, the argument, what was wanted and what came.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <optional>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

#include "job.h"

namespace fastdiff {

using torch::stable::Tensor;
using Sizes = torch::headeronly::IntHeaderOnlyArrayRef;
using OptionalTensor = std::optional<Tensor>;
using TensorList = std::vector<Tensor>;
using IntList = std::vector<std::int64_t>;

// ---------------------------------------------------------------------------------------------------------------------
// Refusals
// ---------------------------------------------------------------------------------------------------------------------

template <class... Parts>
[[noreturn]] void refuse(const char* op, const Parts&... parts) {
  std::ostringstream message;
  message << "fastdiff::" << op << ": ";
  ((message << parts), ...);
  throw std::runtime_error(message.str());
}

// An argument in a message: "table", "inputs[2]".
struct Name {
  const char* text;
  int index = -1;

  friend std::ostream& operator<<(std::ostream& stream, const Name& name) {
    stream << name.text;
    return name.index < 0 ? stream : stream << '[' << name.index << ']';
  }
};

inline std::string text_of(Sizes sizes) {
  std::ostringstream text;
  for (std::size_t i = 0; i < sizes.size(); ++i) text << (i == 0 ? "" : ", ") << sizes[i];
  return '[' + text.str() + ']';
}

inline std::string text_of_dtype(std::int32_t code) {
  static constexpr const char* kNames[] = {"uint8",   "int8",    "int16",     "int32",     "int64",      "float16",
                                           "float32", "float64", "complex32", "complex64", "complex128", "bool"};
  if (code == static_cast<std::int32_t>(Dtype::kBFloat16)) return "bfloat16";
  return code >= 0 && code < 12 ? kNames[code] : "ScalarType " + std::to_string(code);
}

// ---------------------------------------------------------------------------------------------------------------------
// What a tensor is
// ---------------------------------------------------------------------------------------------------------------------

struct Place {
  std::int32_t type, index;

  explicit Place(const Tensor& tensor) {
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(tensor.get(), &type));
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_index(tensor.get(), &index));
  }
  bool operator==(const Place& other) const { return type == other.type && index == other.index; }
  friend std::ostream& operator<<(std::ostream& stream, const Place& place) {
    if (place.type == aoti_torch_device_type_cpu()) return stream << "cpu";
    return stream << (place.type == aoti_torch_device_type_cuda() ? "cuda:" : "device ") << place.index;
  }
};

inline std::int32_t dtype_code(const Tensor& tensor) {
  std::int32_t code;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_dtype(tensor.get(), &code));
  return code;
}

inline bool is_element(std::int32_t code) {
  return (code >= static_cast<std::int32_t>(Dtype::kHalf) && code <= static_cast<std::int32_t>(Dtype::kDouble)) ||
         code == static_cast<std::int32_t>(Dtype::kBFloat16);
}

inline std::int64_t bytes_of(Dtype dtype) {
  if (dtype == Dtype::kDouble) return 8;
  return dtype == Dtype::kFloat ? 4 : 2;
}

inline bool same(Sizes a, Sizes b) {
  if (a.size() != b.size()) return false;
  for (std::size_t i = 0; i < a.size(); ++i) {
    if (a[i] != b[i]) return false;
  }
  return true;
}

// Elements of one sample of a tensor of shape [B, ...].
inline std::int64_t elements_of(Sizes shape) {
  std::int64_t elements = 1;
  for (std::size_t i = 1; i < shape.size(); ++i) elements *= shape[i];
  return elements;
}

// Whether every sample of a tensor [B, ...] is contiguous.
inline bool has_contiguous_samples(const Tensor& tensor) {
  const Sizes sizes = tensor.sizes();
  const Sizes strides = tensor.strides();
  std::int64_t expected = 1;
  for (std::size_t i = sizes.size(); i-- > 1;) {
    if (sizes[i] != 1 && strides[i] != expected) return false;
    expected *= sizes[i];
  }
  return true;
}

// A new contiguous tensor.
inline Tensor make_tensor(Sizes shape, Dtype dtype, Place place) {
  std::vector<std::int64_t> strides(shape.size());
  std::int64_t stride = 1;
  for (std::size_t i = shape.size(); i-- > 0;) {
    strides[i] = stride;
    stride *= shape[i] > 0 ? shape[i] : 1;
  }
  AtenTensorHandle handle;
  TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(static_cast<std::int64_t>(shape.size()), shape.data(), strides.data(),
                                                  static_cast<std::int32_t>(dtype), place.type, place.index, &handle));
  return Tensor(handle);
}

// ---------------------------------------------------------------------------------------------------------------------
// The checks
// ---------------------------------------------------------------------------------------------------------------------

// Checks the arguments of one call and builds its Job. The pointers live as long as the arguments and this object.
class Arguments {
 public:
  // `shape` is that of the call's state, [B, ...].
  Arguments(const char* op, Sizes shape, const Tensor& table) : op_(op), shape_(shape), place_(table) {
    if (shape.size() == 0) refuse(op, "inputs and outputs must have shape [B, ...], got a scalar");
    job.batch = shape[0];
    job.elements = elements_of(shape);
    if (job.elements > std::int64_t{4} << 32)
      refuse(op, "a sample must have at most 2^34 elements, got ", job.elements);
  }

  Arguments(const Arguments&) = delete;
  Arguments& operator=(const Arguments&) = delete;

  void read(const TensorList& inputs, const Tensor& table, const OptionalTensor& rows, const OptionalTensor& seeds,
            const IntList& draws, const OptionalTensor& variance, bool clip, std::size_t outputs) {
    if (inputs.size() > kMaxInputs)
      refuse(op_, "inputs must hold at most ", kMaxInputs, " tensors, got ", inputs.size());
    if (outputs < 1 || outputs > kMaxOutputs)
      refuse(op_, "there must be 1 to ", kMaxOutputs, " outputs, got ", outputs);
    job.inputs = static_cast<int>(inputs.size());
    read_draws(draws);
    job.layout = {job.inputs + job.draws, static_cast<int>(outputs), clip, variance.has_value()};
    read_table(table);
    for (int j = 0; j < job.inputs; ++j) job.columns[j] = column({"inputs", j}, inputs[j]);
    if (variance) job.variance = column({"learned_variance"}, *variance);
    job.rows = rows ? per_sample({"rows"}, *rows) : nullptr;
    read_seeds(seeds);
  }

  void read_draws(const IntList& draws) {
    if (draws.size() > kMaxDraws) refuse(op_, "draws must hold at most ", kMaxDraws, " numbers, got ", draws.size());
    job.draws = static_cast<int>(draws.size());
    for (int n = 0; n < job.draws; ++n) {
      if (draws[n] < 0 || draws[n] >> 32 != 0) {
        refuse(op_, Name{"draws", n}, " must be from 0 to 2^32 - 1, got ", draws[n]);
      }
      job.draw_numbers[n] = static_cast<std::uint32_t>(draws[n]);
    }
  }

  void read_seeds(const OptionalTensor& seeds) {
    if (job.draws > 0 && !seeds) refuse(op_, "seeds must be given when there are draws, got none");
    job.seeds = job.draws > 0 ? per_sample({"seeds"}, *seeds) : nullptr;
  }

  // Output m, made by the operator.
  Tensor make_output(int m, std::int64_t code) {
    if (!is_element(static_cast<std::int32_t>(code)) || code >> 31 != 0) {
      refuse(op_, Name{"out_dtypes", m},
             " must be that of float16 (5), float32 (6), float64 (7) or bfloat16 (15), got ", code);
    }
    Tensor output = make_tensor(shape_, static_cast<Dtype>(code), place_);
    job.outputs[m] = {output.mutable_data_ptr(), static_cast<Dtype>(code)};
    return output;
  }

  // Output m, given by the caller: contiguous, of the call's shape, sharing no memory with anything that is read.
  void write(int m, const Tensor& output) {
    const Name name{"out", m};
    check_elements(name, output);
    if (!output.is_contiguous()) refuse(op_, name, " must be contiguous, got strides ", text_of(output.strides()));
    const auto dtype = static_cast<Dtype>(dtype_code(output));
    job.outputs[m] = {output.mutable_data_ptr(), dtype};
    const Span span = span_of(name, job.outputs[m].data, job.batch * job.elements * bytes_of(dtype));
    for (int i = 0; i < span_count_; ++i) {
      const Span& other = spans_[i];
      if (span.begin < other.end && other.begin < span.end)
        refuse(op_, name, " must not share memory with ", other.name);
    }
    spans_[span_count_++] = span;
  }

  Job job{};

 private:
  struct Span {
    Name name;
    std::uintptr_t begin, end;
  };

  static Span span_of(Name name, const void* data, std::int64_t bytes) {
    const auto begin = reinterpret_cast<std::uintptr_t>(data);
    return {name, begin, begin + static_cast<std::uintptr_t>(bytes)};
  }

  void check_place(Name name, const Tensor& tensor) const {
    const Place place(tensor);
    if (!(place == place_)) refuse(op_, name, " must be on ", place_, " like table, got ", place);
  }

  void check_elements(Name name, const Tensor& tensor) const {
    const std::int32_t code = dtype_code(tensor);
    if (!is_element(code)) {
      refuse(op_, name, " must be float16, float32, float64 or bfloat16, got ", text_of_dtype(code));
    }
    if (!same(tensor.sizes(), shape_)) {
      refuse(op_, name, " must have shape ", text_of(shape_), ", got ", text_of(tensor.sizes()));
    }
    check_place(name, tensor);
  }

  Column column(Name name, const Tensor& tensor) {
    check_elements(name, tensor);
    const auto dtype = static_cast<Dtype>(dtype_code(tensor));
    if (dtype == Dtype::kDouble && job.compute == Dtype::kFloat) {
      refuse(op_, name, " must not be float64 when table is float32");
    }
    const bool dense = has_contiguous_samples(tensor);
    const Column result{dense_data(tensor, dense), dense ? tensor.strides()[0] : job.elements, dtype};
    const std::int64_t last = job.batch > 0 ? (job.batch - 1) * result.stride + job.elements : 0;
    reading(name, result.data, last * bytes_of(dtype));
    return result;
  }

  void read_table(const Tensor& table) {
    const std::int32_t code = dtype_code(table);
    const Sizes sizes = table.sizes();
    job.compute = static_cast<Dtype>(code);
    if ((job.compute != Dtype::kFloat && job.compute != Dtype::kDouble) || sizes.size() != 2 || sizes[0] < 1) {
      refuse(op_, "table must be a float32 or float64 tensor [R, W] with R at least 1, got ", text_of_dtype(code), ' ',
             text_of(sizes));
    }
    // A learned variance may have its factor squared too: the table is then wider by as many numbers.
    const int width = job.layout.width();
    const int wider = width + job.layout.outputs * job.layout.columns;
    job.layout.squared = job.layout.learned && wider > width && sizes[1] == wider;
    if (sizes[1] != job.layout.width()) {
      refuse(op_, "table must have ", width, job.layout.learned ? " or " + std::to_string(wider) : "", " columns for ",
             job.inputs, " inputs, ", job.draws, " draws and ", job.layout.outputs, " outputs",
             job.layout.clip ? ", clip" : "", job.layout.learned ? ", learned_variance" : "", "; got ", text_of(sizes));
    }
    job.table = dense_data(table, table.is_contiguous());
    reading({"table"}, job.table, sizes[0] * sizes[1] * bytes_of(job.compute));
  }

  const std::int64_t* per_sample(Name name, const Tensor& tensor) {
    const std::int32_t code = dtype_code(tensor);
    const Sizes sizes = tensor.sizes();
    if (code != 4 || sizes.size() != 1 || sizes[0] != job.batch) {
      refuse(op_, name, " must be an int64 tensor of shape [", job.batch, "], got ", text_of_dtype(code), ' ',
             text_of(sizes));
    }
    check_place(name, tensor);
    const void* data = dense_data(tensor, tensor.is_contiguous());
    reading(name, data, job.batch * 8);
    return static_cast<const std::int64_t*>(data);
  }

  const void* dense_data(const Tensor& tensor, bool dense) {
    if (dense) return tensor.const_data_ptr();
    kept_.push_back(torch::stable::contiguous(tensor));
    return kept_.back().const_data_ptr();
  }

  void reading(Name name, const void* data, std::int64_t bytes) { spans_[span_count_++] = span_of(name, data, bytes); }

  const char* op_;
  Sizes shape_;
  Place place_;
  TensorList kept_;  // contiguous copies
  // The memory of everything that is read (inputs, variance, table, rows, seeds) and of the outputs so far.
  Span spans_[kMaxInputs + 4 + kMaxOutputs];
  int span_count_ = 0;
};

}  // namespace fastdiff
