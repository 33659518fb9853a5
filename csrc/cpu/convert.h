// Element types in and out of the compute type: loops that the compiler vectorises, F16C where there is one.
// From float64 the 16-bit types go through float32, as in torch. Rounding is to nearest even, NaN stays NaN.
#pragma once

#include <cstdint>

#include "../job.h"
#include "intrinsics.h"

namespace fastdiff {
namespace {

FD_HD float half_to_float(std::uint16_t half) {
  const std::uint32_t magnitude = static_cast<std::uint32_t>(half & 0x7fffu) << 13;
  // 2^112 moves the exponent's bias from 15 to 127 and makes subnormals normal; Inf and NaN get the rest by hand.
  const std::uint32_t finite = bits_of(float_from_bits(magnitude) * 0x1p112f);
  const std::uint32_t quiet = magnitude > 0x0f800000u ? 0x7fc00000u : 0x7f800000u;
  const std::uint32_t bits = magnitude >= 0x0f800000u ? (quiet | magnitude) : finite;
  return float_from_bits(bits | static_cast<std::uint32_t>(half & 0x8000u) << 16);
}

FD_HD std::uint16_t float_to_half(float value) {
  const std::uint32_t bits = bits_of(value);
  const std::uint32_t magnitude = bits & 0x7fffffffu;
  // Subnormal results: adding 0.5 leaves the rounded 2^-24 multiples in the low bits.
  const std::uint32_t tiny = bits_of(float_from_bits(magnitude) + 0.5f) - 0x3f000000u;
  const std::uint32_t normal = (magnitude - 0x38000000u + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
  const std::uint32_t nan = 0x7e00u | ((magnitude >> 13) & 0x1ffu);
  std::uint32_t half = magnitude < 0x38800000u ? tiny : normal;
  half = magnitude >= 0x47800000u ? 0x7c00u : half;  // 65536 and beyond; 65520 .. 65536 round up to it by themselves
  half = magnitude > 0x7f800000u ? nan : half;
  return static_cast<std::uint16_t>(half | ((bits >> 16) & 0x8000u));
}

FD_HD float bfloat16_to_float(std::uint16_t bits) { return float_from_bits(static_cast<std::uint32_t>(bits) << 16); }

FD_HD std::uint16_t float_to_bfloat16(float value) {
  const std::uint32_t bits = bits_of(value);
  const std::uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  return static_cast<std::uint16_t>((bits & 0x7fffffffu) > 0x7f800000u ? 0x7fc0u : rounded);
}

template <class T>
void from_half(const std::uint16_t* in, std::int64_t count, T* out) {
  std::int64_t i = 0;
#if defined(__F16C__)
  for (; i + 8 <= count; i += 8) {
    alignas(32) float eight[8];
    _mm256_store_ps(eight, _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(in + i))));
    for (int k = 0; k < 8; ++k) out[i + k] = static_cast<T>(eight[k]);
  }
#endif
  for (; i < count; ++i) out[i] = static_cast<T>(half_to_float(in[i]));
}

template <class T>
void to_half(const T* in, std::int64_t count, std::uint16_t* out) {
  std::int64_t i = 0;
#if defined(__F16C__)
  for (; i + 8 <= count; i += 8) {
    alignas(32) float eight[8];
    for (int k = 0; k < 8; ++k) eight[k] = static_cast<float>(in[i + k]);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(out + i), _mm256_cvtps_ph(_mm256_load_ps(eight), 0));
  }
#endif
  for (; i < count; ++i) out[i] = float_to_half(static_cast<float>(in[i]));
}

// count elements of `data`, from element `at` on, as T.
template <class T>
void read_as(Dtype dtype, const void* data, std::int64_t at, std::int64_t count, T* out) {
  switch (dtype) {
    case Dtype::kFloat: {
      const float* in = static_cast<const float*>(data) + at;
      for (std::int64_t i = 0; i < count; ++i) out[i] = static_cast<T>(in[i]);
      break;
    }
    case Dtype::kDouble: {
      const double* in = static_cast<const double*>(data) + at;
      for (std::int64_t i = 0; i < count; ++i) out[i] = static_cast<T>(in[i]);
      break;
    }
    case Dtype::kHalf:
      from_half(static_cast<const std::uint16_t*>(data) + at, count, out);
      break;
    case Dtype::kBFloat16: {
      const std::uint16_t* in = static_cast<const std::uint16_t*>(data) + at;
      for (std::int64_t i = 0; i < count; ++i) out[i] = static_cast<T>(bfloat16_to_float(in[i]));
      break;
    }
  }
}

// The inverse: count values to `data`, from element `at` on.
template <class T>
void write_as(Dtype dtype, const T* in, std::int64_t count, void* data, std::int64_t at) {
  switch (dtype) {
    case Dtype::kFloat: {
      float* out = static_cast<float*>(data) + at;
      for (std::int64_t i = 0; i < count; ++i) out[i] = static_cast<float>(in[i]);
      break;
    }
    case Dtype::kDouble: {
      double* out = static_cast<double*>(data) + at;
      for (std::int64_t i = 0; i < count; ++i) out[i] = static_cast<double>(in[i]);
      break;
    }
    case Dtype::kHalf:
      to_half(in, count, static_cast<std::uint16_t*>(data) + at);
      break;
    case Dtype::kBFloat16: {
      std::uint16_t* out = static_cast<std::uint16_t*>(data) + at;
      for (std::int64_t i = 0; i < count; ++i) out[i] = float_to_bfloat16(static_cast<float>(in[i]));
      break;
    }
  }
}

}  // namespace
}  // namespace fastdiff
