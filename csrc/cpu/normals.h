// Runs of normals of one (seed, draw): philox.h's formulas on packs of registers, or one by one where there are none.
#pragma once

#include "simd.h"

namespace fastdiff {
namespace {

#if FASTDIFF_SIMD

namespace packs {

constexpr int kGroupStep = kPack * kLanes;  // groups of four normals made together

// Philox4x32-10 on counters (group, draw, 0, 0), one per 64-bit lane: a word sits in the low half of its lane and
// whatever is in the high half is ignored by the next multiplication. What does not depend on the group in the first
// rounds is worked out once per run.
class Generator {
 public:
  Generator(std::uint64_t seed, std::uint32_t draw) {
    Key key = key_of(seed);
    for (int round = 0; round < kPhiloxRounds; ++round) {
      keys_[round][0] = key.low;
      keys_[round][1] = key.high;
      key.low += kPhiloxWeylA;
      key.high += kPhiloxWeylB;
    }
    // After round 0 word 0 is draw ^ key, word 1 is 0; so half of round 1 is one product of scalars.
    const std::uint32_t word = draw ^ keys_[0][0];
    keys_[1][1] ^= high_product(kPhiloxMultiplierA, word);
    low_ = kPhiloxMultiplierA * word;
  }

  // Writes the normals of groups first .. first + kGroupStep - 1.
  FD_HD void operator()(std::uint32_t first, float* out) const {
    const Bits factor_a = broadcast_lanes(kPhiloxMultiplierA);
    const Bits factor_b = broadcast_lanes(kPhiloxMultiplierB);
    Words a, b, c, d;
#pragma GCC unroll 8
    for (int i = 0; i < kPack; ++i) {
      const Bits group = plus_lanes(broadcast_lanes(first), plus_lanes(counters(), broadcast_lanes(i * kLanes)));
      const Bits product = multiply_low_words(factor_a, group);
      b.of[i] = multiply_low_words(factor_b, differ(high_words(product), broadcast_lanes(keys_[0][1])));
      a.of[i] = differ(high_words(b.of[i]), broadcast_lanes(keys_[1][0]));
      c.of[i] = differ(product, broadcast_lanes(keys_[1][1]));
      d.of[i] = broadcast_lanes(low_);
    }
#pragma GCC unroll 10
    for (int round = 2; round < kPhiloxRounds; ++round) {
      const Bits low = broadcast_lanes(keys_[round][0]);
      const Bits high = broadcast_lanes(keys_[round][1]);
#pragma GCC unroll 8
      for (int i = 0; i < kPack; ++i) {
        const Bits product_a = multiply_low_words(factor_a, a.of[i]);
        const Bits product_b = multiply_low_words(factor_b, c.of[i]);
        a.of[i] = differ(high_words(product_b), b.of[i], low);
        c.of[i] = differ(high_words(product_a), d.of[i], high);
        b.of[i] = product_b;
        d.of[i] = product_a;
      }
    }
    // Lanes (a, c) and (b, d) side by side give (z0, z2) and (z1, z3), which two unpackings bring into order.
    const Words radii = each<Words>([&](int i) { return join_low_words(a.of[i], c.of[i]); });
    const Words angles = each<Words>([&](int i) { return join_low_words(b.of[i], d.of[i]); });
    const Pair<Reals> z = box_muller<Reals>(radii, angles);
#pragma GCC unroll 8
    for (int i = 0; i < kPack; ++i) {
      store(out + 4 * kLanes * i, unpack_low(z.first.of[i], z.second.of[i]));
      store(out + 4 * kLanes * i + 2 * kLanes, unpack_high(z.first.of[i], z.second.of[i]));
    }
  }

 private:
  std::uint32_t keys_[kPhiloxRounds][2];
  std::uint32_t low_;
};

}  // namespace packs

using packs::Generator;
using packs::kGroupStep;

#else

constexpr int kGroupStep = 16;

class Generator {
 public:
  Generator(std::uint64_t seed, std::uint32_t draw) : key_(key_of(seed)), draw_(draw) {}

  // Writes the normals of groups first .. first + kGroupStep - 1.
  FD_HD void operator()(std::uint32_t first, float* out) const {
    std::uint32_t radii[2 * kGroupStep];
    std::uint32_t angles[2 * kGroupStep];
    for (std::uint32_t i = 0; i < kGroupStep; ++i) {
      const Words4 words = philox4x32_10({first + i, draw_, 0u, 0u}, key_);
      radii[2 * i] = words.a;
      radii[2 * i + 1] = words.c;
      angles[2 * i] = words.b;
      angles[2 * i + 1] = words.d;
    }
    for (int i = 0; i < 2 * kGroupStep; ++i) {
      const Pair<float> z = box_muller(radii[i], angles[i]);
      out[2 * i] = z.first;
      out[2 * i + 1] = z.second;
    }
  }

 private:
  Key key_;
  std::uint32_t draw_;
};

#endif

}  // namespace
}  // namespace fastdiff
