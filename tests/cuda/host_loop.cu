// The threads of the CUDA kernels, run one after the other on the host: csrc/cuda without a GPU. Built and called by
// test_cuda_build.py; what it returns is compared with the other backends.
#include "cuda/choice.h"
#include "cuda/units.cuh"

using namespace fastdiff;

namespace {

template <int V, class Function>
void for_each_unit(const Job& job, bool aligned, const Function& function) {
  for (std::uint32_t sample = 0; sample < job.batch; ++sample) {
    for (std::uint32_t index = 0;; ++index) {
      const cuda::Unit<V> unit(sample, index, job.elements, aligned);
      if (unit.count <= 0) break;
      function(unit);
    }
  }
}

Job make_job(const std::int64_t* numbers, void* const* data, const std::int64_t* strides, const int* dtypes) {
  Job job{};
  job.batch = numbers[0], job.elements = numbers[1], job.compute = static_cast<Dtype>(numbers[2]);
  job.inputs = static_cast<int>(numbers[3]), job.draws = static_cast<int>(numbers[4]);
  job.layout = {job.inputs + job.draws, static_cast<int>(numbers[5]), numbers[6] != 0, numbers[7] != 0};
  job.draw_numbers[0] = static_cast<std::uint32_t>(numbers[8]);
  job.draw_numbers[1] = static_cast<std::uint32_t>(numbers[9]);
  job.table = *data++;
  job.rows = static_cast<const std::int64_t*>(*data++);
  job.seeds = static_cast<const std::int64_t*>(*data++);
  for (int j = 0; j < job.inputs; ++j) job.columns[j] = {*data++, *strides++, static_cast<Dtype>(*dtypes++)};
  if (job.layout.learned) job.variance = {*data++, *strides++, static_cast<Dtype>(*dtypes++)};
  for (int m = 0; m < job.layout.outputs; ++m) job.outputs[m] = {*data++, static_cast<Dtype>(*dtypes++)};
  return job;
}

}  // namespace

// Numbers: batch, elements, compute dtype, inputs, draws, outputs, clip, learned, two draws. Data: table, rows, seeds,
// inputs, variance, outputs. V is 8, 4, or 0 for what the launcher would take. Returns V, minus that without words.
extern "C" int host_combine(const std::int64_t* numbers, void* const* data, const std::int64_t* strides,
                            const int* dtypes, int V) {
  const Job job = make_job(numbers, data, strides, dtypes);
  if (V == 0) V = cuda::elements_per_thread(job);
  const bool aligned = cuda::fits_words(job, job.layout.outputs, V);
  cuda::choose(job, [&]<class T, int J, int N>() {
    if constexpr (sizeof(T) == 4 && J == 2) {
      if (V == 8) return for_each_unit<8>(job, aligned, [&](auto unit) { cuda::combine_unit<T, J, N>(job, unit); });
    }
    for_each_unit<4>(job, aligned, [&](auto unit) { cuda::combine_unit<T, J, N>(job, unit); });
  });
  return aligned ? V : -V;
}

extern "C" void host_sum_squares(const std::int64_t* numbers, void* const* data, const std::int64_t* strides,
                                 const int* dtypes, double* sums) {
  Job job = make_job(numbers, data, strides, dtypes);
  job.layout.outputs = 1;
  const bool aligned = cuda::fits_words(job, 0, 4);
  cuda::choose(job, [&]<class T, int J, int N>() {
    for_each_unit<4>(job, aligned, [&](auto unit) { sums[unit.sample] += cuda::sum_squares_unit<T, J, N>(job, unit); });
  });
}

extern "C" void host_normal(const std::int64_t* numbers, void* const* data, const std::int64_t* strides,
                            const int* dtypes) {
  const Job job = make_job(numbers, data, strides, dtypes);
  for_each_unit<4>(job, cuda::fits_words(job, 1, 4), [&](auto unit) { cuda::normal_unit(job, unit); });
}
