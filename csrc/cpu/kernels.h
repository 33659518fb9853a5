// The CPU loops as tables of functions: kernels.cpp is compiled once for every instruction set and fills one each time,
// dispatch.cpp picks one. No torch, no Python.
#pragma once

#include <cstdint>

#include "../job.h"

namespace fastdiff {

// The sum of squares of a sample is that of its blocks, in order, so that threads cannot change it.
constexpr std::int64_t kSumBlock = 4096;

// Elements that are worth a thread: memory-bound loops as in ATen, noise costs about 1 ns an element.
constexpr std::int64_t kGrain = 32768;
constexpr std::int64_t kNoiseGrain = 8192;

inline std::int64_t grain_of(const Job& job) {
  if (job.draws == 0) return kGrain;
  return job.draws <= kFewDraws ? kNoiseGrain : kNoiseGrain * kFewDraws / job.draws;
}

struct Kernels {
  const char* level;
  // Elements begin .. end - 1 of one sample, any bounds.
  void (*combine)(const Job& job, std::int64_t sample, std::int64_t begin, std::int64_t end);
  // Sum of the squares of output 0 over those elements, begin a multiple of kSumBlock and end - begin at most that.
  double (*sum_squares)(const Job& job, std::int64_t sample, std::int64_t begin, std::int64_t end);
  // Normals of elements begin .. end - 1 of the sample with this seed, to out[0] .. out[end - begin - 1].
  void (*normal)(std::int64_t seed, std::uint32_t draw, std::int64_t begin, std::int64_t end, Dtype dtype, void* out);
};

}  // namespace fastdiff
