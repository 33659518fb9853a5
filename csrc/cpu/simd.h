// Packs of registers of the instruction set this file is compiled for, with the primitives that philox.h's formulas
// need. Several registers go through each step together because the chains of dependent operations are long.
// Without one of the x86 levels there are no packs and FASTDIFF_SIMD is 0.
#pragma once

#include <cstdint>

#include "../philox.h"
#include "intrinsics.h"

#if defined(__AVX512F__) && defined(__AVX512DQ__)
#define FASTDIFF_SIMD 64
#elif defined(__AVX2__)
#define FASTDIFF_SIMD 32
#elif defined(__SSE4_1__)
#define FASTDIFF_SIMD 16
#else
#define FASTDIFF_SIMD 0
#endif

#if FASTDIFF_SIMD

namespace fastdiff {
namespace {
namespace packs {

// ---------------------------------------------------------------------------------------------------------------------
// One register. `Bits` holds 32-bit words, or 64-bit lanes where the name says so.
// ---------------------------------------------------------------------------------------------------------------------

#if FASTDIFF_SIMD == 64

using Floats = __m512;
using Bits = __m512i;

FD_HD Floats broadcast(float a) { return _mm512_set1_ps(a); }
FD_HD Bits broadcast(std::uint32_t a) { return _mm512_set1_epi32(static_cast<int>(a)); }
FD_HD Bits broadcast_lanes(std::uint64_t a) { return _mm512_set1_epi64(static_cast<long long>(a)); }
FD_HD Floats as_floats(Bits a) { return _mm512_castsi512_ps(a); }
FD_HD Bits as_bits(Floats a) { return _mm512_castps_si512(a); }
FD_HD Floats multiply(Floats a, Floats b) { return _mm512_mul_ps(a, b); }
FD_HD Floats plus(Floats a, Floats b) { return _mm512_add_ps(a, b); }
FD_HD Floats minus(Floats a, Floats b) { return _mm512_sub_ps(a, b); }
FD_HD Floats root(Floats a) { return _mm512_sqrt_ps(a); }
FD_HD Floats from_signed(Bits a) { return _mm512_cvtepi32_ps(a); }
FD_HD Floats unit_from(Bits a) { return _mm512_mul_ps(_mm512_cvtepu32_ps(a), _mm512_set1_ps(0x1p-32f)); }
FD_HD Floats pick(Bits flag, Floats yes, Floats no) {
  return _mm512_mask_blend_ps(_mm512_movepi32_mask(flag), no, yes);
}
FD_HD Bits both(Bits a, Bits b) { return _mm512_and_si512(a, b); }
FD_HD Bits either(Bits a, Bits b) { return _mm512_or_si512(a, b); }
FD_HD Bits differ(Bits a, Bits b) { return _mm512_xor_si512(a, b); }
FD_HD Bits differ(Bits a, Bits b, Bits c) { return _mm512_ternarylogic_epi64(a, b, c, 0x96); }
FD_HD Bits plus(Bits a, Bits b) { return _mm512_add_epi32(a, b); }
FD_HD Bits minus(Bits a, Bits b) { return _mm512_sub_epi32(a, b); }
FD_HD Bits left(Bits a, int count) { return _mm512_slli_epi32(a, static_cast<unsigned>(count)); }
// 64-bit lanes
FD_HD Bits plus_lanes(Bits a, Bits b) { return _mm512_add_epi64(a, b); }
FD_HD Bits multiply_low_words(Bits a, Bits b) { return _mm512_mul_epu32(a, b); }
FD_HD Bits high_words(Bits a) { return _mm512_srli_epi64(a, 32); }
FD_HD Bits join_low_words(Bits a, Bits b) { return _mm512_mask_blend_epi32(0xAAAA, a, _mm512_slli_epi64(b, 32)); }
FD_HD Bits counters() { return _mm512_setr_epi64(0, 4, 1, 5, 2, 6, 3, 7); }
FD_HD Floats unpack_low(Floats a, Floats b) { return _mm512_unpacklo_ps(a, b); }
FD_HD Floats unpack_high(Floats a, Floats b) { return _mm512_unpackhi_ps(a, b); }
FD_HD void store(float* to, Floats a) { _mm512_storeu_ps(to, a); }

#elif FASTDIFF_SIMD == 32

using Floats = __m256;
using Bits = __m256i;

FD_HD Floats broadcast(float a) { return _mm256_set1_ps(a); }
FD_HD Bits broadcast(std::uint32_t a) { return _mm256_set1_epi32(static_cast<int>(a)); }
FD_HD Bits broadcast_lanes(std::uint64_t a) { return _mm256_set1_epi64x(static_cast<long long>(a)); }
FD_HD Floats as_floats(Bits a) { return _mm256_castsi256_ps(a); }
FD_HD Bits as_bits(Floats a) { return _mm256_castps_si256(a); }
FD_HD Floats multiply(Floats a, Floats b) { return _mm256_mul_ps(a, b); }
FD_HD Floats plus(Floats a, Floats b) { return _mm256_add_ps(a, b); }
FD_HD Floats minus(Floats a, Floats b) { return _mm256_sub_ps(a, b); }
FD_HD Floats root(Floats a) { return _mm256_sqrt_ps(a); }
FD_HD Floats from_signed(Bits a) { return _mm256_cvtepi32_ps(a); }
// The halves become the low mantissa bits of 2^-9 and of 2^7: (2^7 + high) - (2^7 + 2^-9) + (2^-9 + low), one rounding.
FD_HD Floats unit_from(Bits a) {
  const Floats low = _mm256_castsi256_ps(_mm256_blend_epi16(_mm256_set1_epi32(0x3B000000), a, 0x55));
  const Bits high = _mm256_or_si256(_mm256_srli_epi32(a, 16), _mm256_set1_epi32(0x43000000));
  return _mm256_add_ps(_mm256_sub_ps(_mm256_castsi256_ps(high), _mm256_set1_ps(0x1p7f + 0x1p-9f)), low);
}
FD_HD Floats pick(Bits flag, Floats yes, Floats no) { return _mm256_blendv_ps(no, yes, _mm256_castsi256_ps(flag)); }
FD_HD Bits both(Bits a, Bits b) { return _mm256_and_si256(a, b); }
FD_HD Bits either(Bits a, Bits b) { return _mm256_or_si256(a, b); }
FD_HD Bits differ(Bits a, Bits b) { return _mm256_xor_si256(a, b); }
FD_HD Bits differ(Bits a, Bits b, Bits c) { return _mm256_xor_si256(_mm256_xor_si256(a, b), c); }
FD_HD Bits plus(Bits a, Bits b) { return _mm256_add_epi32(a, b); }
FD_HD Bits minus(Bits a, Bits b) { return _mm256_sub_epi32(a, b); }
FD_HD Bits left(Bits a, int count) { return _mm256_slli_epi32(a, count); }
// 64-bit lanes
FD_HD Bits plus_lanes(Bits a, Bits b) { return _mm256_add_epi64(a, b); }
FD_HD Bits multiply_low_words(Bits a, Bits b) { return _mm256_mul_epu32(a, b); }
FD_HD Bits high_words(Bits a) { return _mm256_srli_epi64(a, 32); }
FD_HD Bits join_low_words(Bits a, Bits b) { return _mm256_blend_epi32(a, _mm256_slli_epi64(b, 32), 0xAA); }
FD_HD Bits counters() { return _mm256_setr_epi64x(0, 2, 1, 3); }
FD_HD Floats unpack_low(Floats a, Floats b) { return _mm256_unpacklo_ps(a, b); }
FD_HD Floats unpack_high(Floats a, Floats b) { return _mm256_unpackhi_ps(a, b); }
FD_HD void store(float* to, Floats a) { _mm256_storeu_ps(to, a); }

#else

using Floats = __m128;
using Bits = __m128i;

FD_HD Floats broadcast(float a) { return _mm_set1_ps(a); }
FD_HD Bits broadcast(std::uint32_t a) { return _mm_set1_epi32(static_cast<int>(a)); }
FD_HD Bits broadcast_lanes(std::uint64_t a) { return _mm_set1_epi64x(static_cast<long long>(a)); }
FD_HD Floats as_floats(Bits a) { return _mm_castsi128_ps(a); }
FD_HD Bits as_bits(Floats a) { return _mm_castps_si128(a); }
FD_HD Floats multiply(Floats a, Floats b) { return _mm_mul_ps(a, b); }
FD_HD Floats plus(Floats a, Floats b) { return _mm_add_ps(a, b); }
FD_HD Floats minus(Floats a, Floats b) { return _mm_sub_ps(a, b); }
FD_HD Floats root(Floats a) { return _mm_sqrt_ps(a); }
FD_HD Floats from_signed(Bits a) { return _mm_cvtepi32_ps(a); }
FD_HD Floats unit_from(Bits a) {  // as with 32 bytes
  const Floats low = _mm_castsi128_ps(_mm_blend_epi16(_mm_set1_epi32(0x3B000000), a, 0x55));
  const Bits high = _mm_or_si128(_mm_srli_epi32(a, 16), _mm_set1_epi32(0x43000000));
  return _mm_add_ps(_mm_sub_ps(_mm_castsi128_ps(high), _mm_set1_ps(0x1p7f + 0x1p-9f)), low);
}
FD_HD Floats pick(Bits flag, Floats yes, Floats no) { return _mm_blendv_ps(no, yes, _mm_castsi128_ps(flag)); }
FD_HD Bits both(Bits a, Bits b) { return _mm_and_si128(a, b); }
FD_HD Bits either(Bits a, Bits b) { return _mm_or_si128(a, b); }
FD_HD Bits differ(Bits a, Bits b) { return _mm_xor_si128(a, b); }
FD_HD Bits differ(Bits a, Bits b, Bits c) { return _mm_xor_si128(_mm_xor_si128(a, b), c); }
FD_HD Bits plus(Bits a, Bits b) { return _mm_add_epi32(a, b); }
FD_HD Bits minus(Bits a, Bits b) { return _mm_sub_epi32(a, b); }
FD_HD Bits left(Bits a, int count) { return _mm_slli_epi32(a, count); }
// 64-bit lanes
FD_HD Bits plus_lanes(Bits a, Bits b) { return _mm_add_epi64(a, b); }
FD_HD Bits multiply_low_words(Bits a, Bits b) { return _mm_mul_epu32(a, b); }
FD_HD Bits high_words(Bits a) { return _mm_srli_epi64(a, 32); }
FD_HD Bits join_low_words(Bits a, Bits b) { return _mm_blend_epi16(a, _mm_slli_epi64(b, 32), 0xCC); }
FD_HD Bits counters() { return _mm_set_epi64x(1, 0); }
FD_HD Floats unpack_low(Floats a, Floats b) { return _mm_unpacklo_ps(a, b); }
FD_HD Floats unpack_high(Floats a, Floats b) { return _mm_unpackhi_ps(a, b); }
FD_HD void store(float* to, Floats a) { _mm_storeu_ps(to, a); }

#endif

constexpr int kPack = 4;                   // registers that go together
constexpr int kLanes = FASTDIFF_SIMD / 8;  // 64-bit lanes of a register

// ---------------------------------------------------------------------------------------------------------------------
// Packs, with the names that philox.h uses for one number
// ---------------------------------------------------------------------------------------------------------------------

struct Reals {
  Floats of[kPack];
};

struct Words {
  Bits of[kPack];
};

template <class Result, class Function>
FD_HD Result each(Function function) {
  Result result;
#pragma GCC unroll 8
  for (int i = 0; i < kPack; ++i) result.of[i] = function(i);
  return result;
}

FD_HD Reals mul(const Reals& a, const Reals& b) {
  return each<Reals>([&](int i) { return multiply(a.of[i], b.of[i]); });
}
FD_HD Reals add(const Reals& a, const Reals& b) {
  return each<Reals>([&](int i) { return plus(a.of[i], b.of[i]); });
}
FD_HD Reals sub(const Reals& a, const Reals& b) {
  return each<Reals>([&](int i) { return minus(a.of[i], b.of[i]); });
}
FD_HD Reals mul(const Reals& a, float b) {
  return each<Reals>([&](int i) { return multiply(a.of[i], broadcast(b)); });
}
FD_HD Reals add(const Reals& a, float b) {
  return each<Reals>([&](int i) { return plus(a.of[i], broadcast(b)); });
}
FD_HD Reals sub(const Reals& a, float b) {
  return each<Reals>([&](int i) { return minus(a.of[i], broadcast(b)); });
}
FD_HD Reals square_root(const Reals& a) {
  return each<Reals>([&](int i) { return root(a.of[i]); });
}
FD_HD Reals unit_of(const Words& a) {
  return each<Reals>([&](int i) { return unit_from(a.of[i]); });
}
FD_HD Reals float_of_signed(const Words& a) {
  return each<Reals>([&](int i) { return from_signed(a.of[i]); });
}
FD_HD Words bits_of(const Reals& a) {
  return each<Words>([&](int i) { return as_bits(a.of[i]); });
}
FD_HD Reals float_from_bits(const Words& a) {
  return each<Reals>([&](int i) { return as_floats(a.of[i]); });
}
FD_HD Reals choose(const Words& flag, const Reals& yes, const Reals& no) {
  return each<Reals>([&](int i) { return pick(flag.of[i], yes.of[i], no.of[i]); });
}
FD_HD Words operator<<(const Words& a, int count) {
  return each<Words>([&](int i) { return left(a.of[i], count); });
}
FD_HD Words operator-(const Words& a, const Words& b) {
  return each<Words>([&](int i) { return minus(a.of[i], b.of[i]); });
}
FD_HD Words operator^(const Words& a, const Words& b) {
  return each<Words>([&](int i) { return differ(a.of[i], b.of[i]); });
}
FD_HD Words operator+(const Words& a, std::uint32_t b) {
  return each<Words>([&](int i) { return plus(a.of[i], broadcast(b)); });
}
FD_HD Words operator-(const Words& a, std::uint32_t b) {
  return each<Words>([&](int i) { return minus(a.of[i], broadcast(b)); });
}
FD_HD Words operator&(const Words& a, std::uint32_t b) {
  return each<Words>([&](int i) { return both(a.of[i], broadcast(b)); });
}
FD_HD Words operator|(const Words& a, std::uint32_t b) {
  return each<Words>([&](int i) { return either(a.of[i], broadcast(b)); });
}

}  // namespace packs
}  // namespace
}  // namespace fastdiff

#endif  // FASTDIFF_SIMD
