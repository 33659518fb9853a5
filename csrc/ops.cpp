// The operators of torch.ops.fastdiff: every schema, and the CPU kernels, on LibTorch's stable ABI.
#include <Python.h>
#include <torch/csrc/stable/library.h>

#include <algorithm>

#include "arguments.h"
#include "cpu/dispatch.h"

namespace fastdiff {
namespace {

// Calls run(sample, begin, end) on pieces of all samples, a piece starting at a multiple of `piece` in its sample.
// Little work stays on the calling thread.
template <class Run>
void for_each_piece(std::int64_t batch, std::int64_t elements, std::int64_t piece, std::int64_t grain, const Run& run) {
  if (batch == 0 || elements == 0) return;
  const std::int64_t per_sample = (elements + piece - 1) / piece;
  const auto pieces = [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t i = begin; i < end;) {
      const std::int64_t sample = i / per_sample;
      const std::int64_t first = i - sample * per_sample;
      const std::int64_t last = std::min(per_sample, first + (end - i));
      run(sample, first * piece, std::min(elements, last * piece));
      i += last - first;
    }
  };
  const std::int64_t count = batch * per_sample;
  if (batch * elements <= grain) return pieces(0, count);
  torch::stable::parallel_for(0, count, std::max<std::int64_t>(1, grain / std::min(piece, elements)), pieces);
}

// The rows that samples name; on the CPU they can be looked at.
void check_rows(const char* op, const Job& job, std::int64_t count) {
  if (job.rows == nullptr) return;
  for (std::int64_t b = 0; b < job.batch; ++b) {
    if (job.rows[b] < 0 || job.rows[b] >= count) {
      refuse(op, "rows must be from 0 to ", count - 1, ", got rows[", b, "] = ", job.rows[b]);
    }
  }
}

void run_combine(const Job& job) {
  const Kernels& loops = kernels();
  for_each_piece(
      job.batch, job.elements, kSumBlock, grain_of(job),
      [&](std::int64_t sample, std::int64_t begin, std::int64_t end) { loops.combine(job, sample, begin, end); });
}

TensorList combine(const TensorList& inputs, const Tensor& table, const OptionalTensor& rows,
                   const OptionalTensor& seeds, const IntList& draws, const OptionalTensor& learned_variance, bool clip,
                   const IntList& out_dtypes) {
  if (inputs.empty()) refuse("combine", "inputs must hold at least one tensor, got none");
  Arguments arguments("combine", inputs[0].sizes(), table);
  arguments.read(inputs, table, rows, seeds, draws, learned_variance, clip, out_dtypes.size());
  check_rows("combine", arguments.job, table.size(0));
  TensorList outputs;
  for (std::size_t m = 0; m < out_dtypes.size(); ++m) {
    outputs.push_back(arguments.make_output(static_cast<int>(m), out_dtypes[m]));
  }
  run_combine(arguments.job);
  return outputs;
}

void combine_out(const TensorList& inputs, const Tensor& table, const OptionalTensor& rows, const OptionalTensor& seeds,
                 const IntList& draws, const OptionalTensor& learned_variance, bool clip, const TensorList& out) {
  if (inputs.empty() && out.empty()) refuse("combine_out", "out must hold at least one tensor, got none");
  Arguments arguments("combine_out", (inputs.empty() ? out : inputs)[0].sizes(), table);
  arguments.read(inputs, table, rows, seeds, draws, learned_variance, clip, out.size());
  check_rows("combine_out", arguments.job, table.size(0));
  for (std::size_t m = 0; m < out.size(); ++m) arguments.write(static_cast<int>(m), out[m]);
  run_combine(arguments.job);
}

Tensor sum_squares(const TensorList& inputs, const Tensor& table, const OptionalTensor& rows,
                   const OptionalTensor& seeds, const IntList& draws) {
  if (inputs.empty()) refuse("sum_squares", "inputs must hold at least one tensor, got none");
  Arguments arguments("sum_squares", inputs[0].sizes(), table);
  arguments.read(inputs, table, rows, seeds, draws, std::nullopt, false, 1);
  const Job& job = arguments.job;
  check_rows("sum_squares", job, table.size(0));
  Tensor result = make_tensor({&job.batch, 1}, Dtype::kDouble, Place(table));
  auto* sums = static_cast<double*>(result.mutable_data_ptr());

  const Kernels& loops = kernels();
  const std::int64_t blocks = (job.elements + kSumBlock - 1) / kSumBlock;
  std::vector<double> partial(static_cast<std::size_t>(job.batch * blocks));
  for_each_piece(job.batch, job.elements, kSumBlock, grain_of(job),
                 [&](std::int64_t sample, std::int64_t begin, std::int64_t end) {
                   for (std::int64_t at = begin; at < end; at += kSumBlock) {
                     partial[static_cast<std::size_t>(sample * blocks + at / kSumBlock)] =
                         loops.sum_squares(job, sample, at, std::min(end, at + kSumBlock));
                   }
                 });
  for (std::int64_t b = 0; b < job.batch; ++b) {
    sums[b] = 0;
    for (std::int64_t i = 0; i < blocks; ++i) sums[b] += partial[static_cast<std::size_t>(b * blocks + i)];
  }
  return result;
}

Tensor normal(const Tensor& seeds, const IntList& shape, std::int64_t draw, std::int64_t dtype) {
  Arguments arguments("normal", shape, seeds);
  arguments.read_draws({draw});
  arguments.read_seeds(seeds);
  Tensor result = arguments.make_output(0, dtype);
  const Job& job = arguments.job;
  const Kernels& loops = kernels();
  const Output& output = job.outputs[0];
  const std::int64_t bytes = bytes_of(output.dtype);
  for_each_piece(job.batch, job.elements, kSumBlock, kNoiseGrain,
                 [&](std::int64_t sample, std::int64_t begin, std::int64_t end) {
                   void* out = static_cast<char*>(output.data) + (sample * job.elements + begin) * bytes;
                   loops.normal(job.seeds[sample], job.draw_numbers[0], begin, end, output.dtype, out);
                 });
  return result;
}

}  // namespace
}  // namespace fastdiff

STABLE_TORCH_LIBRARY(fastdiff, library) {
  library.def(
      "combine(Tensor[] inputs, Tensor table, Tensor? rows, Tensor? seeds, int[] draws, Tensor? learned_variance, "
      "bool clip, int[] out_dtypes) -> Tensor[]");
  library.def(
      "combine_out(Tensor[] inputs, Tensor table, Tensor? rows, Tensor? seeds, int[] draws, Tensor? learned_variance, "
      "bool clip, Tensor(a!)[] out) -> ()");
  library.def("sum_squares(Tensor[] inputs, Tensor table, Tensor? rows, Tensor? seeds, int[] draws) -> Tensor");
  library.def("normal(Tensor seeds, SymInt[] shape, int draw, int dtype) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(fastdiff, CPU, library) {
  library.impl("combine", TORCH_BOX(&fastdiff::combine));
  library.impl("combine_out", TORCH_BOX(&fastdiff::combine_out));
  library.impl("sum_squares", TORCH_BOX(&fastdiff::sum_squares));
  library.impl("normal", TORCH_BOX(&fastdiff::normal));
}

// `import fastdiff._C` loads this library, which registers the operators; the module itself is empty.
extern "C" PyMODINIT_FUNC PyInit__C() {
  static PyModuleDef definition = {
      PyModuleDef_HEAD_INIT, "_C", nullptr, 0, nullptr, nullptr, nullptr, nullptr, nullptr};
  return PyModule_Create(&definition);
}
