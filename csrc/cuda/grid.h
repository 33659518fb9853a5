// Which thread does which quads of which sample.
#pragma once

#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstdint>

#include "choice.h"
#include "units.cuh"

namespace fastdiff::cuda {

constexpr unsigned kThreads = 256;
constexpr unsigned kWarp = 32;
constexpr std::int64_t kManyBlocks = 132;  // an H100 or H200 has as many multiprocessors
constexpr std::int64_t kMaxGridY = 65535;

// x runs along a sample; y over the samples of a block, several where samples are short; blocks y and z over samples.
struct Grid {
  dim3 blocks, threads;

  // `units`: threads that a sample needs. Blocks are smaller where they would be too few to go round.
  Grid(std::int64_t batch, std::int64_t units) {
    unsigned size = kThreads;
    while (size > kWarp && batch * units < kManyBlocks * size) size /= 2;
    while (threads.x < size && threads.x < units) threads.x *= 2;
    while (threads.x * threads.y < size && threads.y < batch) threads.y *= 2;
    place(batch, units);
  }

  // Blocks of kThreads threads, each on one sample.
  static Grid of_tiles(std::int64_t batch, std::int64_t tiles) {
    Grid grid;
    grid.threads.x = kThreads;
    grid.place(batch, tiles * kThreads);
    return grid;
  }

 private:
  Grid() = default;

  void place(std::int64_t batch, std::int64_t units) {
    blocks.x = static_cast<unsigned>((units + threads.x - 1) / threads.x);
    const std::int64_t rows = (batch + threads.y - 1) / threads.y;
    blocks.y = static_cast<unsigned>(std::min(rows, kMaxGridY));
    blocks.z = static_cast<unsigned>((rows + blocks.y - 1) / blocks.y);
  }
};

// Calls function.template operator()<Q, kStream>(grid) with the quads of a thread. What does not fit into the cache is
// streamed past it, and is enough for two quads a thread on every multiprocessor.
template <class Form, class Function>
void with_grid(const Job& job, int outputs, std::int64_t cache_bytes, const Function& function) {
  const std::int64_t quads = (job.elements + 3) / 4;
  if constexpr (Form::kFixed) {
    if (traffic(job, outputs) > cache_bytes) {
      constexpr int Q = kManyQuads<Form>;
      return function.template operator()<Q, true>(Grid(job.batch, (quads + Q - 1) / Q));
    }
  }
  function.template operator()<1, false>(Grid(job.batch, quads));
}

// The unit of a thread; there is none for it if its sample or its first quad does not exist.
template <class Form, int Q, bool kStream>
FD_HD Unit<Form, Q, kStream> unit_of(const Job& job, bool aligned, dim3 blocks, dim3 threads, uint3 block,
                                     uint3 thread) {
  const std::uint32_t sample = (block.z * blocks.y + block.y) * threads.y + thread.y;
  const auto elements = static_cast<typename Form::Offset>(job.elements);
  return {sample, block.x * threads.x * Q + thread.x, threads.x, elements, aligned};
}

}  // namespace fastdiff::cuda
