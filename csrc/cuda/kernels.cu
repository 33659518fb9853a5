// Grids over units.cuh.
#include <algorithm>

#include "choice.h"
#include "launch.h"
#include "units.cuh"

namespace fastdiff::cuda {
namespace {

constexpr int kThreads = 256;
constexpr std::int64_t kMaxGridY = 65535;

// x runs along a sample, y and z over samples. A block has one sample and no thread loops over several, so that rows,
// seeds and weights are the same for a whole warp and stay out of its registers: half as many are in use.
struct Grid {
  dim3 blocks, threads;

  Grid(std::int64_t batch, std::int64_t units, unsigned narrowest = 32) {
    threads.x = narrowest;
    while (threads.x < kThreads && threads.x < units) threads.x *= 2;
    blocks.x = static_cast<unsigned>((units + threads.x - 1) / threads.x);
    blocks.y = static_cast<unsigned>(std::min(batch, kMaxGridY));
    blocks.z = static_cast<unsigned>((batch + blocks.y - 1) / blocks.y);
  }
};

__device__ __forceinline__ std::uint32_t this_sample() { return blockIdx.z * gridDim.y + blockIdx.y; }

template <int V>
__device__ __forceinline__ Unit<V> this_unit(const Job& job, bool aligned) {
  return Unit<V>(this_sample(), blockIdx.x * blockDim.x + threadIdx.x, job.elements, aligned);
}

// Blocks that must fit on a multiprocessor: many, to have many loads under way, but no register may be spilled.
template <class T, int J, int N, int V>
constexpr int least_blocks() {
  if (sizeof(T) == 8) return J > 4 ? 1 : 2;
  if (J > 2) return J > 4 ? 2 : 3;
  return V == 4 ? 5 : N == 2 ? 2 : 3;
}

template <class T, int J, int N, int V>
__global__ void __launch_bounds__(kThreads, (least_blocks<T, J, N, V>()))
    combine_kernel(const __grid_constant__ Job job, bool aligned) {
  const Unit<V> unit = this_unit<V>(job, aligned);
  if (unit.sample < job.batch && unit.count > 0) combine_unit<T, J, N>(job, unit);
}

__global__ void __launch_bounds__(kThreads) normal_kernel(const __grid_constant__ Job job, bool aligned) {
  const Unit<4> unit = this_unit<4>(job, aligned);
  if (unit.sample < job.batch && unit.count > 0) normal_unit(job, unit);
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

template <class T, int J, int N>
__global__ void __launch_bounds__(kThreads, (least_blocks<T, J, N, 4>()))
    sum_squares_kernel(const __grid_constant__ Job job, double* partial, bool aligned) {
  const Unit<4> unit = this_unit<4>(job, aligned);
  if (unit.sample >= job.batch) return;
  const double sum = block_sum(unit.count > 0 ? sum_squares_unit<T, J, N>(job, unit) : 0.0);
  if (threadIdx.x == 0) partial[static_cast<std::int64_t>(unit.sample) * gridDim.x + blockIdx.x] = sum;
}

__global__ void __launch_bounds__(kThreads) add_tiles(const double* partial, std::int64_t tiles, double* sums) {
  double sum = 0;
  for (std::int64_t i = threadIdx.x; i < tiles; i += kThreads) sum += partial[blockIdx.x * tiles + i];
  sum = block_sum(sum);
  if (threadIdx.x == 0) sums[blockIdx.x] = sum;
}

}  // namespace

cudaError_t combine(const Job& job, cudaStream_t stream) {
  if (job.batch == 0 || job.elements == 0) return cudaSuccess;
  const auto launch = [&]<class T, int J, int N, int V>() {
    const Grid grid(job.batch, (job.elements + V - 1) / V);
    const bool aligned = fits_words(job, job.layout.outputs, V);
    combine_kernel<T, J, N, V><<<grid.blocks, grid.threads, 0, stream>>>(job, aligned);
  };
  choose(job, [&]<class T, int J, int N>() {
    if constexpr (sizeof(T) == 4 && J == 2) {
      if (elements_per_thread(job) == 8) return launch.template operator()<T, J, N, 8>();
    }
    launch.template operator()<T, J, N, 4>();
  });
  return cudaGetLastError();
}

// One number for every block of sum_squares_kernel.
std::int64_t sum_squares_tiles(std::int64_t elements) { return (elements + 4 * kThreads - 1) / (4 * kThreads); }

cudaError_t sum_squares(const Job& job, double* partial, double* sums, cudaStream_t stream) {
  if (job.batch == 0) return cudaSuccess;
  const std::int64_t tiles = sum_squares_tiles(job.elements);
  if (tiles > 0) {
    const bool aligned = fits_words(job, 0, 4);
    const Grid grid(job.batch, tiles * kThreads, kThreads);
    choose(job, [&]<class T, int J, int N>() {
      sum_squares_kernel<T, J, N><<<grid.blocks, grid.threads, 0, stream>>>(job, partial, aligned);
    });
  }
  add_tiles<<<static_cast<unsigned>(job.batch), kThreads, 0, stream>>>(partial, tiles, sums);
  return cudaGetLastError();
}

cudaError_t normal(const Job& job, cudaStream_t stream) {
  if (job.batch == 0 || job.elements == 0) return cudaSuccess;
  const Grid grid(job.batch, (job.elements + 3) / 4);
  normal_kernel<<<grid.blocks, grid.threads, 0, stream>>>(job, fits_words(job, 1, 4));
  return cudaGetLastError();
}

}  // namespace fastdiff::cuda
