// What a kernel knows of its job when it is compiled. One kernel template takes one of these:
//
//   Fixed   the launches of plans: the numbers of inputs, draws and outputs, the types and whether there is a clamp are
//           known, one row serves the batch, every sample moves in whole words, 32-bit offsets suffice. Straight-line
//           code.
//   Any     everything else: a learned variance, rows, float64, ragged or misaligned samples, huge tensors.
//   Many    the same with more draws than registers hold: a loop over columns, each added to all sums as it comes.
#pragma once

#include <cstdint>

#include "../job.h"

namespace fastdiff::cuda {

// float32, except for the inputs whose bits are set in `kShortInputs` and any of the outputs: these are of type S, as a
// network's outputs and inputs are beside a float32 state.
template <int J, int N, int M, bool kClip = false, Dtype S = Dtype::kFloat, int kShortInputs = 0>
struct Fixed {
  using Compute = float;
  using Offset = std::uint32_t;
  static constexpr int kInputs = J, kDraws = N, kOutputs = M, kSums = 0;
  static constexpr int kWeights = (J + N) * M + (kClip ? J + N + 2 + M : 0);
  static constexpr bool kClamps = kClip;
  static constexpr Dtype kShort = S;
  static constexpr bool kFixed = true;

  FD_HD static constexpr int inputs(const Job&) { return J; }
  FD_HD static constexpr int draws(const Job&) { return N; }
  FD_HD static constexpr int most_outputs(const Job&) { return M; }
  FD_HD static constexpr RowLayout layout(const Job&) { return {J + N, M, kClip, false, false}; }
  FD_HD static constexpr Dtype input(int j) { return (kShortInputs >> j & 1) != 0 ? S : Dtype::kFloat; }
};

// Up to J inputs and N draws.
template <class T, int J, int N>
struct Any {
  using Compute = T;
  using Offset = std::int64_t;
  static constexpr int kInputs = J, kDraws = N, kOutputs = 1, kWeights = 1, kSums = 0;
  static constexpr bool kFixed = false;

  FD_HD static int inputs(const Job& job) { return job.inputs; }
  FD_HD static int draws(const Job& job) { return job.draws; }
  FD_HD static int most_outputs(const Job& job) { return job.layout.outputs; }
  FD_HD static RowLayout layout(const Job& job) { return job.layout; }
};

// Any numbers, in registers only the first S weighted sums of a row: those of the outputs or all.
template <class T, int S>
struct Many : Any<T, 0, 0> {
  static constexpr int kOutputs = S < kMaxOutputs ? S : kMaxOutputs, kSums = S;

  FD_HD static constexpr int most_outputs(const Job&) { return kOutputs; }
};

}  // namespace fastdiff::cuda
