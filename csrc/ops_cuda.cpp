// The CUDA kernels behind the operators that ops.cpp declares, on LibTorch's stable ABI. The same checks, the tensor's
// device made current, its current stream, an error code turned into an exception.
#include <Python.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>

#include "arguments.h"
#include "cuda/launch.h"

namespace fastdiff {
namespace {

// Makes the device of a tensor, one that was checked, current; `stream` is the one PyTorch uses there, also while a
// graph is captured.
struct Device {
  torch::stable::accelerator::DeviceGuard guard;
  cudaStream_t stream;

  explicit Device(const Tensor& tensor) : guard(tensor.get_device_index()) {
    void* current = nullptr;
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(tensor.get_device_index(), &current));
    stream = static_cast<cudaStream_t>(current);
  }
};

void check(const char* op, cudaError_t error) {
  if (error != cudaSuccess) refuse(op, "the CUDA launch failed: ", cudaGetErrorString(error));
}

TensorList combine(const TensorList& inputs, const Tensor& table, const OptionalTensor& rows,
                   const OptionalTensor& seeds, const IntList& draws, const OptionalTensor& learned_variance, bool clip,
                   const IntList& out_dtypes) {
  if (inputs.empty()) refuse("combine", "inputs must hold at least one tensor, got none");
  Arguments arguments("combine", inputs[0].sizes(), table);
  arguments.read(inputs, table, rows, seeds, draws, learned_variance, clip, out_dtypes.size());
  TensorList outputs;
  for (std::size_t m = 0; m < out_dtypes.size(); ++m) {
    outputs.push_back(arguments.make_output(static_cast<int>(m), out_dtypes[m]));
  }
  const Device device(table);
  check("combine", cuda::combine(arguments.job, device.stream));
  return outputs;
}

void combine_out(const TensorList& inputs, const Tensor& table, const OptionalTensor& rows, const OptionalTensor& seeds,
                 const IntList& draws, const OptionalTensor& learned_variance, bool clip, const TensorList& out) {
  if (inputs.empty() && out.empty()) refuse("combine_out", "out must hold at least one tensor, got none");
  Arguments arguments("combine_out", (inputs.empty() ? out : inputs)[0].sizes(), table);
  arguments.read(inputs, table, rows, seeds, draws, learned_variance, clip, out.size());
  for (std::size_t m = 0; m < out.size(); ++m) arguments.write(static_cast<int>(m), out[m]);
  const Device device(table);
  check("combine_out", cuda::combine(arguments.job, device.stream));
}

Tensor sum_squares(const TensorList& inputs, const Tensor& table, const OptionalTensor& rows,
                   const OptionalTensor& seeds, const IntList& draws) {
  if (inputs.empty()) refuse("sum_squares", "inputs must hold at least one tensor, got none");
  Arguments arguments("sum_squares", inputs[0].sizes(), table);
  arguments.read(inputs, table, rows, seeds, draws, std::nullopt, false, 1);
  const Job& job = arguments.job;
  const std::int64_t numbers = job.batch * cuda::sum_squares_tiles(job.elements);
  Tensor partial = make_tensor({&numbers, 1}, Dtype::kDouble, Place(table));
  Tensor sums = make_tensor({&job.batch, 1}, Dtype::kDouble, Place(table));
  const Device device(table);
  check("sum_squares", cuda::sum_squares(job, static_cast<double*>(partial.mutable_data_ptr()),
                                         static_cast<double*>(sums.mutable_data_ptr()), device.stream));
  return sums;
}

Tensor normal(const Tensor& seeds, const IntList& shape, std::int64_t draw, std::int64_t dtype) {
  Arguments arguments("normal", shape, seeds);
  arguments.read_draws({draw});
  arguments.read_seeds(seeds);
  Tensor output = arguments.make_output(0, dtype);
  const Device device(seeds);
  check("normal", cuda::normal(arguments.job, device.stream));
  return output;
}

}  // namespace
}  // namespace fastdiff

STABLE_TORCH_LIBRARY_IMPL(fastdiff, CUDA, library) {
  library.impl("combine", TORCH_BOX(&fastdiff::combine));
  library.impl("combine_out", TORCH_BOX(&fastdiff::combine_out));
  library.impl("sum_squares", TORCH_BOX(&fastdiff::sum_squares));
  library.impl("normal", TORCH_BOX(&fastdiff::normal));
}

// `import fastdiff._cuda`, after fastdiff._C, loads this library; the module itself is empty.
extern "C" PyMODINIT_FUNC PyInit__cuda() {
  static PyModuleDef definition = {
      PyModuleDef_HEAD_INIT, "_cuda", nullptr, 0, nullptr, nullptr, nullptr, nullptr, nullptr};
  return PyModule_Create(&definition);
}
