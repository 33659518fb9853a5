// Launchers of the CUDA kernels: a Job of device pointers in, an error code out. No torch include.
//
// The caller has checked the arguments, made the device current and passes its current stream. Nothing here allocates
// or synchronises, so every launch can be captured into a graph. An empty tensor launches nothing.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "../job.h"

namespace fastdiff::cuda {

cudaError_t combine(const Job& job, cudaStream_t stream);

// Sums of squares into sums [B]. `partial` has room for batch * sum_squares_tiles(elements) numbers.
// Which element is added when follows from `elements` alone, so every GPU gives the same bits.
std::int64_t sum_squares_tiles(std::int64_t elements);
cudaError_t sum_squares(const Job& job, double* partial, double* sums, cudaStream_t stream);

// The normals of job.draw_numbers[0] into job.outputs[0].
cudaError_t normal(const Job& job, cudaStream_t stream);

}  // namespace fastdiff::cuda
