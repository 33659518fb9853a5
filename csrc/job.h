// A checked call of combine, sum_squares or normal in raw pointers, on any device: no torch, no Python.
#pragma once

#include <cstdint>

#include "combine.h"

namespace fastdiff {

// The element types, with the numbers of torch's ScalarType.
enum class Dtype : std::int32_t { kHalf = 5, kFloat = 6, kDouble = 7, kBFloat16 = 15 };

// A tensor [B, elements] whose samples are contiguous. `stride` counts elements from one sample to the next: 0 for a
// sample that all share.
struct Column {
  const void* data;
  std::int64_t stride;
  Dtype dtype;
};

// A contiguous tensor [B, elements].
struct Output {
  void* data;
  Dtype dtype;
};

struct Job {
  RowLayout layout;
  std::int64_t batch;
  std::int64_t elements;      // of one sample
  Dtype compute;              // kFloat or kDouble: the type of the table and of the arithmetic
  const void* table;          // [R, layout.width()]
  const std::int64_t* rows;   // [B], or null: row 0 for every sample
  const std::int64_t* seeds;  // [B], or null without draws
  int inputs;
  int draws;
  Column columns[kMaxInputs];
  Column variance;              // if layout.learned
  Output outputs[kMaxOutputs];  // of combine
  std::uint32_t draw_numbers[kMaxDraws];
};

}  // namespace fastdiff
