// One element of fastdiff::combine: the layout of a row of the table and the arithmetic, host and device.
//
//   v_k = input k, or normal k - J, cast to T                                                  k < K = J + N
//   p   = clamp(P[0] v_0 + ... + P[K-1] v_{K-1}, low, high)                                    if clip
//   e   = exp(a lv + b)                                                                        if learned
//   y_m = C[m][0] v_0 + ...  [+ c[m] p]  [+ e (E[m][0] v_0 + ...  [+ e (D[m][0] v_0 + ...)])]  m < M; D if squared
//
// T is float or double. Sums run from the left, every operation is rounded by itself, NaN passes through the clamp.
#pragma once

#if !defined(__CUDA_ARCH__)
#include <cmath>
#endif

#include "philox.h"

namespace fastdiff {

constexpr int kMaxInputs = 8;
constexpr int kMaxDraws = 64;
constexpr int kFewDraws = 2;  // more are added to the sums one by one as they are made
constexpr int kMaxOutputs = 3;

// Where the numbers of one row are:  C[M][K]   then, if clip, P[K] low high c[M]   then, if learned, a b E[M][K]   and,
// if squared, D[M][K].
struct RowLayout {
  int columns;           // K
  int outputs;           // M
  bool clip;             // a clamped combination follows
  bool learned;          // a learned variance follows
  bool squared = false;  // and what is multiplied with the square of its factor

  FD_HD int coefficient(int output) const { return output * columns; }
  FD_HD int clipped() const { return outputs * columns; }
  FD_HD int low() const { return clipped() + columns; }
  FD_HD int high() const { return low() + 1; }
  FD_HD int clip_weight(int output) const { return high() + 1 + output; }
  FD_HD int slope() const { return clipped() + (clip ? columns + 2 + outputs : 0); }
  FD_HD int intercept() const { return slope() + 1; }
  FD_HD int learned_coefficient(int output) const { return intercept() + 1 + output * columns; }
  FD_HD int squared_coefficient(int output) const { return learned_coefficient(outputs + output); }
  FD_HD int width() const { return learned ? learned_coefficient(squared ? 2 * outputs : outputs) : slope(); }

  // The weighted sums of a row by number: C of output m is m, then P, E and D. Where the weights of one begin; -1: the
  // row has no such sum.
  static constexpr int kP = kMaxOutputs, kE = kP + 1, kD = kE + kMaxOutputs, kSums = kD + kMaxOutputs;
  FD_HD int place(int sum) const {
    if (sum < kP) return sum < outputs ? coefficient(sum) : -1;
    if (sum == kP) return clip ? clipped() : -1;
    if (sum < kD) return learned && sum - kE < outputs ? learned_coefficient(sum - kE) : -1;
    return squared && sum - kD < outputs ? squared_coefficient(sum - kD) : -1;
  }
};

// weights[0] values[0] + weights[1] values[1] + ..., zero when there is nothing to add.
template <class T>
FD_HD T weighted_sum(const T* weights, const T* values, int count) {
  T sum = count > 0 ? mul(weights[0], values[0]) : T(0);
#if defined(__CUDA_ARCH__)
#pragma unroll
#endif
  for (int k = 1; k < count; ++k) sum = add(sum, mul(weights[k], values[k]));
  return sum;
}

template <class T>
FD_HD T clamp(T value, T low, T high) {
  value = value < low ? low : value;
  return value > high ? high : value;
}

// e^x by Cephes' expf: x = n ln 2 + f, |f| <= ln 2 / 2, polynomial of degree 7, then 2^n in two exact halves so that
// overflow gives Inf and underflow a subnormal or zero. NaN gives NaN. Within one unit in the last place where the
// result is normal.
FD_HD float exponential(float x) {
  x = x > 89.0f ? 89.0f : x;
  x = x < -104.0f ? -104.0f : x;
  const float shifted = add(mul(x, 1.44269504f), 12582912.0f);  // 1.5 * 2^23: its low bits are round(x / ln 2)
  const std::uint32_t n = bits_of(shifted) - 0x4B400000u;
  const float whole = sub(shifted, 12582912.0f);
  float f = sub(x, mul(whole, 0.693359375f));
  f = add(f, mul(whole, 2.12194440e-4f));
  float p = 1.9875691500e-4f;
  p = add(mul(p, f), 1.3981999507e-3f);
  p = add(mul(p, f), 8.3334519073e-3f);
  p = add(mul(p, f), 4.1665795894e-2f);
  p = add(mul(p, f), 1.6666665459e-1f);
  p = add(mul(p, f), 5.0000001201e-1f);
  p = mul(p, mul(f, f));
  p = add(add(p, f), 1.0f);
  const std::uint32_t half = static_cast<std::uint32_t>(static_cast<std::int32_t>(n) >> 1);
  p = mul(p, float_from_bits((half + 127u) << 23));
  return mul(p, float_from_bits((n - half + 127u) << 23));
}

// float64 has no frozen polynomial: the platform's exp, the one function whose last bit may differ between backends.
FD_HD double exponential(double x) {
#if defined(__CUDA_ARCH__)
  return exp(x);
#else
  return std::exp(x);
#endif
}

// All outputs of one element. `values` holds the K columns in order, `variance` the learned variance (unused without).
template <class T>
FD_HD void combine_element(const T* row, const RowLayout& layout, const T* values, T variance, T* outputs) {
  T clipped = T(0);
  if (layout.clip) {
    clipped =
        clamp(weighted_sum(row + layout.clipped(), values, layout.columns), row[layout.low()], row[layout.high()]);
  }
  T factor = T(0);
  if (layout.learned) factor = exponential(add(mul(row[layout.slope()], variance), row[layout.intercept()]));
#if defined(__CUDA_ARCH__)
#pragma unroll
#endif
  for (int m = 0; m < layout.outputs; ++m) {
    T y = weighted_sum(row + layout.coefficient(m), values, layout.columns);
    if (layout.clip) y = add(y, mul(row[layout.clip_weight(m)], clipped));
    if (layout.learned) {
      T scaled = weighted_sum(row + layout.learned_coefficient(m), values, layout.columns);
      if (layout.squared) {
        scaled = add(scaled, mul(factor, weighted_sum(row + layout.squared_coefficient(m), values, layout.columns)));
      }
      y = add(y, mul(factor, scaled));
    }
    outputs[m] = y;
  }
}

}  // namespace fastdiff
