// The threads of the CUDA kernels, run one after the other on the host: csrc/cuda without a GPU. Built and called by
// test_cuda_build.py; what it returns is compared with the other backends.
#include "cuda/choice.h"
#include "cuda/grid.h"
#include "cuda/units.cuh"

using namespace fastdiff;

// What a job was launched as.
struct Launched {
  int fixed, quads, stream, aligned, threads_x, threads_y, blocks, units;
};

namespace {

template <class Form, int Q, bool kStream, class Function>
int for_each_unit(const Job& job, bool aligned, const cuda::Grid& grid, const Function& function) {
  int units = 0;
  const dim3 blocks = grid.blocks, threads = grid.threads;
  for (unsigned z = 0; z < blocks.z; ++z)
    for (unsigned y = 0; y < blocks.y; ++y)
      for (unsigned x = 0; x < blocks.x; ++x)
        for (unsigned ty = 0; ty < threads.y; ++ty)
          for (unsigned tx = 0; tx < threads.x; ++tx) {
            const auto unit =
                cuda::unit_of<Form, Q, kStream>(job, aligned, blocks, threads, uint3{x, y, z}, uint3{tx, ty, 0});
            if (!unit.exists(job)) continue;
            function(unit);
            ++units;
          }
  return units;
}

template <class Form, int Q, bool kStream>
Launched describe(bool aligned, const cuda::Grid& grid) {
  const auto blocks = static_cast<int>(grid.blocks.x * grid.blocks.y * grid.blocks.z);
  const auto x = static_cast<int>(grid.threads.x), y = static_cast<int>(grid.threads.y);
  return {Form::kFixed, Q, kStream, aligned, x, y, blocks, 0};
}

Job make_job(const std::int64_t* numbers, void* const* data, const std::int64_t* strides, const int* dtypes) {
  Job job{};
  job.batch = numbers[0], job.elements = numbers[1], job.compute = static_cast<Dtype>(numbers[2]);
  job.inputs = static_cast<int>(numbers[3]), job.draws = static_cast<int>(numbers[4]);
  job.layout = {job.inputs + job.draws, static_cast<int>(numbers[5]), numbers[6] != 0, numbers[7] != 0,
                numbers[7] == 2};
  for (int n = 0; n < job.draws; ++n) job.draw_numbers[n] = static_cast<std::uint32_t>(numbers[8 + n]);
  job.table = *data++;
  job.rows = static_cast<const std::int64_t*>(*data++);
  job.seeds = static_cast<const std::int64_t*>(*data++);
  for (int j = 0; j < job.inputs; ++j) job.columns[j] = {*data++, *strides++, static_cast<Dtype>(*dtypes++)};
  if (job.layout.learned) job.variance = {*data++, *strides++, static_cast<Dtype>(*dtypes++)};
  for (int m = 0; m < job.layout.outputs; ++m) job.outputs[m] = {*data++, static_cast<Dtype>(*dtypes++)};
  return job;
}

}  // namespace

// Numbers: batch, elements, compute dtype, inputs, draws, outputs, clip, learned (2: squared too), the draws. Data:
// table, rows, seeds, inputs, variance, outputs. `cache_bytes`: of the GPU to be. With `run` = 0, only says what would
// be launched.
extern "C" void host_combine(const std::int64_t* numbers, void* const* data, const std::int64_t* strides,
                             const int* dtypes, std::int64_t cache_bytes, int run, Launched* launched) {
  const Job job = make_job(numbers, data, strides, dtypes);
  const bool aligned = cuda::fits_words(job, job.layout.outputs);
  cuda::choose(job, [&]<class Form>() {
    cuda::with_grid<Form>(job, job.layout.outputs, cache_bytes, [&]<int Q, bool kStream>(const cuda::Grid& grid) {
      *launched = describe<Form, Q, kStream>(aligned, grid);
      if (run == 0) return;
      launched->units =
          for_each_unit<Form, Q, kStream>(job, aligned, grid, [&](const auto& unit) { cuda::combine_unit(job, unit); });
    });
  });
}

extern "C" void host_sum_squares(const std::int64_t* numbers, void* const* data, const std::int64_t* strides,
                                 const int* dtypes, double* sums) {
  Job job = make_job(numbers, data, strides, dtypes);
  job.layout.outputs = 1;
  const bool aligned = cuda::fits_words(job, 0);
  const cuda::Grid grid =
      cuda::Grid::of_tiles(job.batch, (job.elements + 4 * cuda::kThreads - 1) / (4 * cuda::kThreads));
  cuda::choose_sum(job, [&]<class Form>() {
    for_each_unit<Form, 1, false>(job, aligned, grid,
                                  [&](const auto& unit) { sums[unit.sample] += cuda::sum_squares_unit(job, unit); });
  });
}

extern "C" void host_normal(const std::int64_t* numbers, void* const* data, const std::int64_t* strides,
                            const int* dtypes, std::int64_t cache_bytes, Launched* launched) {
  const Job job = make_job(numbers, data, strides, dtypes);
  const bool aligned = cuda::fits_words(job, 1);
  cuda::choose_normal(job, [&]<class Form>() {
    cuda::with_grid<Form>(job, 1, cache_bytes, [&]<int Q, bool kStream>(const cuda::Grid& grid) {
      *launched = describe<Form, Q, kStream>(aligned, grid);
      launched->units =
          for_each_unit<Form, Q, kStream>(job, aligned, grid, [&](const auto& unit) { cuda::normal_unit(job, unit); });
    });
  });
}
