// The kernels: grids over units.cuh.
#include <array>
#include <atomic>
#include <cstdint>

#include "grid.h"
#include "launch.h"

namespace fastdiff::cuda {
namespace {

// Blocks that must fit on a multiprocessor. What counts is the bytes under way, 48 KiB for an H100's memory: of two
// inputs in float32, a thread has 32 or, with two quads, 64 bytes under way, so that 1536 and 1024 threads are plenty.
// More registers than these bounds leave (40 and 64) are not needed, and fewer would be spilled. Long rows take more:
// without them, loads would be put off until after the noise.
template <class Form, int Q>
constexpr int least_blocks() {
  if (Form::kFixed && Q > 1) return Form::kDraws > 0 && Form::kWeights > 8 ? 3 : 4;
  if (Form::kFixed) return Form::kWeights < 10 ? 6 : Form::kWeights < 12 ? 5 : 4;
  const bool many = Form::kInputs > 4 || Form::kSums > kMaxOutputs;
  if (sizeof(typename Form::Compute) == 8) return many ? 1 : 2;
  return many ? 2 : 3;
}

template <class Form, int Q, bool kStream>
__device__ __forceinline__ Unit<Form, Q, kStream> this_unit(const Job& job, bool aligned) {
  return unit_of<Form, Q, kStream>(job, aligned, gridDim, blockDim, blockIdx, threadIdx);
}

template <class Form, int Q, bool kStream>
__global__ void __launch_bounds__(kThreads, (least_blocks<Form, Q>()))
    combine_kernel(const __grid_constant__ Job job, bool aligned) {
  const auto unit = this_unit<Form, Q, kStream>(job, aligned);
  if (unit.exists(job)) combine_unit(job, unit);
}

template <class Form, int Q, bool kStream>
__global__ void __launch_bounds__(kThreads, (least_blocks<Form, Q>()))
    normal_kernel(const __grid_constant__ Job job, bool aligned) {
  const auto unit = this_unit<Form, Q, kStream>(job, aligned);
  if (unit.exists(job)) normal_unit(job, unit);
}

// The sum over a block in a fixed order; the result is thread 0's.
__device__ double block_sum(double value) {
  __shared__ double warps[kThreads / 32];
  for (int step = 16; step > 0; step /= 2) value += __shfl_down_sync(~0u, value, step);
  if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = value;
  __syncthreads();
  double sum = 0;
  if (threadIdx.x == 0) {
    for (const double part : warps) sum += part;
  }
  return sum;
}

template <class Form>
__global__ void __launch_bounds__(kThreads, (least_blocks<Form, 1>()))
    sum_squares_kernel(const __grid_constant__ Job job, double* partial, bool aligned) {
  const auto unit = this_unit<Form, 1, false>(job, aligned);
  if (unit.sample >= job.batch) return;
  const double sum = block_sum(unit.is_inside(0) ? sum_squares_unit(job, unit) : 0.0);
  if (threadIdx.x == 0) partial[static_cast<std::int64_t>(unit.sample) * gridDim.x + blockIdx.x] = sum;
}

__global__ void __launch_bounds__(kThreads) add_tiles(const double* partial, std::int64_t tiles, double* sums) {
  double sum = 0;
  for (std::int64_t i = threadIdx.x; i < tiles; i += kThreads) sum += partial[blockIdx.x * tiles + i];
  sum = block_sum(sum);
  if (threadIdx.x == 0) sums[blockIdx.x] = sum;
}

// The bytes of the present device's L2 cache, asked for once; endless if there is no answer.
std::int64_t cache_bytes() {
  static std::array<std::atomic<int>, 64> known{};
  int device = 0;
  if (cudaGetDevice(&device) != cudaSuccess || device >= static_cast<int>(known.size())) return INT64_MAX;
  int bytes = known[static_cast<std::size_t>(device)].load(std::memory_order_relaxed);
  if (bytes == 0) {
    if (cudaDeviceGetAttribute(&bytes, cudaDevAttrL2CacheSize, device) != cudaSuccess) return INT64_MAX;
    known[static_cast<std::size_t>(device)].store(bytes, std::memory_order_relaxed);
  }
  return bytes > 0 ? bytes : INT64_MAX;
}

}  // namespace

cudaError_t combine(const Job& job, cudaStream_t stream) {
  if (job.batch == 0 || job.elements == 0) return cudaSuccess;
  const bool aligned = fits_words(job, job.layout.outputs);
  choose(job, [&]<class Form>() {
    with_grid<Form>(job, job.layout.outputs, cache_bytes(), [&]<int Q, bool kStream>(const Grid& grid) {
      combine_kernel<Form, Q, kStream><<<grid.blocks, grid.threads, 0, stream>>>(job, aligned);
    });
  });
  return cudaGetLastError();
}

// One number for every block of sum_squares_kernel.
std::int64_t sum_squares_tiles(std::int64_t elements) { return (elements + 4 * kThreads - 1) / (4 * kThreads); }

cudaError_t sum_squares(const Job& job, double* partial, double* sums, cudaStream_t stream) {
  if (job.batch == 0) return cudaSuccess;
  const std::int64_t tiles = sum_squares_tiles(job.elements);
  if (tiles > 0) {
    const bool aligned = fits_words(job, 0);
    const Grid grid = Grid::of_tiles(job.batch, tiles);
    choose_sum(job, [&]<class Form>() {
      sum_squares_kernel<Form><<<grid.blocks, grid.threads, 0, stream>>>(job, partial, aligned);
    });
  }
  add_tiles<<<static_cast<unsigned>(job.batch), kThreads, 0, stream>>>(partial, tiles, sums);
  return cudaGetLastError();
}

cudaError_t normal(const Job& job, cudaStream_t stream) {
  if (job.batch == 0 || job.elements == 0) return cudaSuccess;
  const bool aligned = fits_words(job, 1);
  choose_normal(job, [&]<class Form>() {
    with_grid<Form>(job, 1, cache_bytes(), [&]<int Q, bool kStream>(const Grid& grid) {
      normal_kernel<Form, Q, kStream><<<grid.blocks, grid.threads, 0, stream>>>(job, aligned);
    });
  });
  return cudaGetLastError();
}

}  // namespace fastdiff::cuda
