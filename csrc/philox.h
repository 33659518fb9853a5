// The noise contract: from (seed, draw, element) to a float32 normal, with the same bits on every backend.
//
// Integers are Philox4x32-10 (Salmon et al., "Parallel Random Numbers: As Easy as 1, 2, 3", SC 2011). The key is the
// sample's 64-bit seed, low word first; the counter is (g, k, 0, 0), g = index of the element in its sample / 4,
// k = number of the draw. The four words (a, b, c, d) of one block make the normals of elements 4g .. 4g + 3: (a, b)
// those of the first two, (c, d) those of the last two, by Box-Muller.
//
// Every floating-point operation below is an IEEE add, subtract, multiply, square root or conversion, rounded to
// nearest even by itself: no fma unless the product is exact, no libm, no reassociation. On the host this needs
// -ffp-contract=off; on the device the _rn intrinsics see to it. The order of the operations and the constants are
// frozen by known-answer tests.
//
// Largest |z|: sqrt(2 * 33 * ln 2) = 6.76. Against real arithmetic on u (below) and b, the largest error among 1e9
// draws is 6.9e-7; no draw can be further off than 1.03e-6, by trying every radius and every angle.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__CUDACC__)
#define FD_HD __host__ __device__ __forceinline__
#else
#define FD_HD inline __attribute__((always_inline))
#endif

namespace fastdiff {

// ---------------------------------------------------------------------------------------------------------------------
// Separately rounded arithmetic
// ---------------------------------------------------------------------------------------------------------------------

#if defined(__CUDA_ARCH__)
FD_HD float mul(float a, float b) { return __fmul_rn(a, b); }
FD_HD float add(float a, float b) { return __fadd_rn(a, b); }
FD_HD float sub(float a, float b) { return __fsub_rn(a, b); }
FD_HD double mul(double a, double b) { return __dmul_rn(a, b); }
FD_HD double add(double a, double b) { return __dadd_rn(a, b); }
FD_HD double sub(double a, double b) { return __dsub_rn(a, b); }
FD_HD float square_root(float a) { return __fsqrt_rn(a); }
FD_HD float uniform_of(std::uint32_t a) { return __fmaf_rn(__uint2float_rn(a), 0x1p-32f, 0x1p-33f); }
FD_HD float float_of_signed(std::uint32_t a) { return __int2float_rn(static_cast<std::int32_t>(a)); }
FD_HD std::uint32_t bits_of(float a) { return __float_as_uint(a); }
FD_HD float float_from_bits(std::uint32_t a) { return __uint_as_float(a); }
// a b + c for an exact product a b: fused or not makes no difference.
FD_HD float add_exact_product(float a, float b, float c) { return __fmaf_rn(a, b, c); }
#else
FD_HD float mul(float a, float b) { return a * b; }
FD_HD float add(float a, float b) { return a + b; }
FD_HD float sub(float a, float b) { return a - b; }
FD_HD double mul(double a, double b) { return a * b; }
FD_HD double add(double a, double b) { return a + b; }
FD_HD double sub(double a, double b) { return a - b; }
FD_HD float square_root(float a) { return __builtin_sqrtf(a); }
// a 2^-32 rounded to nearest: two exact halves and one rounding, because not every machine converts unsigned numbers.
FD_HD float unit_of(std::uint32_t a) {
  const float high = static_cast<float>(static_cast<std::int32_t>(a >> 16)) * 0x1p-16f;
  return high + static_cast<float>(static_cast<std::int32_t>(a & 0xffffu)) * 0x1p-32f;
}
FD_HD float float_of_signed(std::uint32_t a) { return static_cast<float>(static_cast<std::int32_t>(a)); }
FD_HD std::uint32_t bits_of(float a) {
  std::uint32_t bits;
  std::memcpy(&bits, &a, sizeof bits);
  return bits;
}
FD_HD float float_from_bits(std::uint32_t a) {
  float value;
  std::memcpy(&value, &a, sizeof value);
  return value;
}
FD_HD std::uint32_t high_product(std::uint32_t a, std::uint32_t b) {
  return static_cast<std::uint32_t>((static_cast<std::uint64_t>(a) * b) >> 32);
}
template <class Word>
FD_HD auto uniform_of(const Word& a) {
  return add(unit_of(a), 0x1p-33f);
}
template <class Real>
FD_HD Real add_exact_product(const Real& a, float b, const Real& c) {
  return add(mul(a, b), c);
}
#endif

// yes where the top bit of `flag` is set, else no
FD_HD float choose(std::uint32_t flag, float yes, float no) { return (flag & 0x80000000u) != 0 ? yes : no; }

// The same for the second bit, and the top bit of whether the two differ, each in what a machine does fastest.
#if defined(__CUDA_ARCH__)
FD_HD float choose_by_second_bit(std::uint32_t flags, float yes, float no) {
  return (flags & 0x40000000u) != 0 ? yes : no;
}
FD_HD std::uint32_t top_bits_differ(std::uint32_t flags) { return (flags + 0x40000000u) & 0x80000000u; }
#else
template <class Word, class Real>
FD_HD Real choose_by_second_bit(const Word& flags, const Real& yes, const Real& no) {
  return choose(flags << 1, yes, no);
}
template <class Word>
FD_HD Word top_bits_differ(const Word& flags) {
  return (flags ^ (flags << 1)) & 0x80000000u;
}
#endif

// ---------------------------------------------------------------------------------------------------------------------
// Philox4x32-10
// ---------------------------------------------------------------------------------------------------------------------

constexpr std::uint32_t kPhiloxMultiplierA = 0xD2511F53u;  // of word 0
constexpr std::uint32_t kPhiloxMultiplierB = 0xCD9E8D57u;  // of word 2
constexpr std::uint32_t kPhiloxWeylA = 0x9E3779B9u;        // key schedule of the low word
constexpr std::uint32_t kPhiloxWeylB = 0xBB67AE85u;        // key schedule of the high word
constexpr int kPhiloxRounds = 10;

struct Words4 {
  std::uint32_t a, b, c, d;
};

struct Key {
  std::uint32_t low, high;
};

FD_HD Key key_of(std::uint64_t seed) {
  return {static_cast<std::uint32_t>(seed), static_cast<std::uint32_t>(seed >> 32)};
}

struct Product {
  std::uint32_t low, high;
};

FD_HD Product wide_product(std::uint32_t a, std::uint32_t b) {
#if defined(__CUDA_ARCH__)
  Product product;  // one instruction; from 64-bit or two 32-bit multiplications nvcc makes two or three
  asm("{\n .reg .u64 wide;\n mul.wide.u32 wide, %2, %3;\n mov.b64 {%0, %1}, wide;\n}"
      : "=r"(product.low), "=r"(product.high)
      : "r"(a), "r"(b));
  return product;
#else
  const std::uint64_t product = static_cast<std::uint64_t>(a) * b;
  return {static_cast<std::uint32_t>(product), static_cast<std::uint32_t>(product >> 32)};
#endif
}

// The rounds after the first, which is done.
FD_HD Words4 later_rounds(Words4 counter, Key key) {
#if defined(__CUDA_ARCH__)
#pragma unroll
#endif
  for (int round = 1; round < kPhiloxRounds; ++round) {
    key.low += kPhiloxWeylA;
    key.high += kPhiloxWeylB;
    const Product a = wide_product(kPhiloxMultiplierA, counter.a);
    const Product b = wide_product(kPhiloxMultiplierB, counter.c);
    counter = {b.high ^ counter.b ^ key.low, b.low, a.high ^ counter.d ^ key.high, a.low};
  }
  return counter;
}

FD_HD Words4 philox4x32_10(Words4 counter, Key key) {
  const Product a = wide_product(kPhiloxMultiplierA, counter.a);
  const Product b = wide_product(kPhiloxMultiplierB, counter.c);
  return later_rounds({b.high ^ counter.b ^ key.low, b.low, a.high ^ counter.d ^ key.high, a.low}, key);
}

// ---------------------------------------------------------------------------------------------------------------------
// Box-Muller. Real and Word are float and std::uint32_t, or the packs of them in cpu/simd.h.
// ---------------------------------------------------------------------------------------------------------------------

template <class Real>
struct Pair {
  Real first, second;
};

// -2 ln u for u in [2^-33, 1]: u = 2^e m with m in [sqrt(1/2), sqrt(2)), f = m - 1,
// -2 ln(1 + f) = f^2 (1 + f Q(f)) - 2f with Q minimax for the error of the square root (7.5e-8),
// -2 ln 2 = -1.38671875 (few bits: times e exact) + 4.2438888e-4. Zero for u = 1, else in [2^-23, 46).
template <class Real>
FD_HD Real minus_two_log(Real u) {
  const auto bits = bits_of(u);
  const auto above = bits - 0x3f3504f3u;  // of sqrt(1/2)
  const auto exponent = above & 0xff800000u;
  const Real e = float_of_signed(exponent);  // times 2^23, exactly
  const Real f = sub(float_from_bits(bits - exponent), 1.0f);
  Real q = sub(mul(f, 0.20887454f), 0.32521993f);
  q = add(mul(q, f), 0.3427833f);
  q = sub(mul(q, f), 0.39782923f);
  q = add(mul(q, f), 0.4996272f);
  q = sub(mul(q, f), 0.66670835f);
  q = add(mul(q, f), 1.0f);
  q = mul(q, mul(f, f));
  q = add_exact_product(f, -2.0f, q);
  q = add(q, mul(e, 4.2438888e-4f * 0x1p-23f));
  return add_exact_product(e, -1.38671875f * 0x1p-23f, q);
}

// sin and cos of (b + 1/2) 2^-32 turns. By integers, b = 2^30 quadrant + r with r in [-2^29, 2^29): the angle is
// quadrant / 4 turns + x / 8 turns, x = (2r + 1) 2^-30 in (-1, 1) rounded to float32 once; sin and cos of (pi / 4) x
// are minimax polynomials (5.0e-9, 4.1e-10).
template <class Real, class Word>
FD_HD Pair<Real> sine_cosine(Word b) {
  // (b << 2 | 2) as a signed number is 4r + 2: exactly twice 2r + 1, so the conversion rounds as that of 2r + 1.
  const Real x = mul(float_of_signed((b << 2) | 2u), 0x1p-31f);
  const Real z = mul(x, x);
  Real s = add(mul(z, -3.5579415e-5f), 2.4893708e-3f);
  s = sub(mul(s, z), 8.074513e-2f);
  s = add(mul(s, z), 0.7853981f);
  s = mul(s, x);
  Real c = sub(mul(z, 3.4905204e-6f), 3.2586334e-4f);
  c = add(mul(c, z), 1.5854282e-2f);
  c = sub(mul(c, z), 0.30842513f);
  c = add(mul(c, z), 1.0f);
  // quadrant 0: (s, c)   1: (c, -s)   2: (-s, -c)   3: (-c, s)
  const Word turned = b + 0x20000000u;
  const Word sine_sign = turned & 0x80000000u;
  const Word cosine_sign = top_bits_differ(turned);
  return {float_from_bits(bits_of(choose_by_second_bit(turned, c, s)) ^ sine_sign),
          float_from_bits(bits_of(choose_by_second_bit(turned, s, c)) ^ cosine_sign)};
}

// Two normals of two words: u = a 2^-32 + 2^-33 and v = (b + 1/2) 2^-32 turns give sqrt(-2 ln u) (sin v, cos v).
template <class Real, class Word>
FD_HD Pair<Real> box_muller(Word a, Word b) {
  const Real radius = square_root(minus_two_log(uniform_of(a)));
  const Pair<Real> unit = sine_cosine<Real>(b);
  return {mul(radius, unit.first), mul(radius, unit.second)};
}

FD_HD Pair<float> box_muller(std::uint32_t a, std::uint32_t b) { return box_muller<float, std::uint32_t>(a, b); }

struct Normals4 {
  float z0, z1, z2, z3;
};

// The normals of elements 4 * group .. 4 * group + 3 of the sample with this seed.
FD_HD Normals4 normals4(std::uint64_t seed, std::uint32_t draw, std::uint32_t group) {
  const Key key = key_of(seed);
  const Product first = wide_product(kPhiloxMultiplierA, group);  // the other product is that of zero
  const Words4 words = later_rounds({draw ^ key.low, 0u, first.high ^ key.high, first.low}, key);
  const Pair<float> front = box_muller(words.a, words.b);
  const Pair<float> back = box_muller(words.c, words.d);
  return {front.first, front.second, back.first, back.second};
}

}  // namespace fastdiff
