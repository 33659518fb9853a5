// V elements of any type as 32-bit words: moved 16 or 8 bytes at a time where addresses allow, else one by one, and
// cast from and to the compute type T. Moving and casting are apart, so that a thread can start all its loads, make its
// noise meanwhile, and only then wait for what it loaded.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

#include "../job.h"

namespace fastdiff::cuda {

FD_HD int size_of(Dtype dtype) { return dtype == Dtype::kDouble ? 8 : dtype == Dtype::kFloat ? 4 : 2; }

// Through the read-only cache: no kernel writes what it reads.
template <class Value>
FD_HD Value read(const void* from) {
#if defined(__CUDA_ARCH__)
  return __ldg(static_cast<const Value*>(from));
#else
  return *static_cast<const Value*>(from);
#endif
}

// Brings `count` numbers into the first-level cache, one sector of 32 bytes at a time.
template <class Value>
FD_HD void prefetch(const Value* from, int count) {
#if defined(__CUDA_ARCH__)
#pragma unroll 1
  for (int i = 0; i < count; i += 32 / static_cast<int>(sizeof(Value))) {
    asm volatile("prefetch.global.L1 [%0];" ::"l"(__cvta_generic_to_global(from + i)));
  }
#endif
}

// Room for V elements as wide as T; narrower ones fill the front.
template <class T, int V>
struct Words {
  static constexpr int kCount = V * static_cast<int>(sizeof(T)) / 4;
  std::uint32_t of[kCount];
};

// Four words from a multiple of 16 bytes. `volatile`, and not through the read-only path, so that the loads of a thread
// stay in front of its arithmetic and of all its stores: the compiler would rather move them behind the Philox rounds
// or the first store, to have fewer registers in use. Streaming loads and stores are the first to leave the caches.
template <bool kStream>
FD_HD uint4 read_four(const void* from) {
#if defined(__CUDA_ARCH__)
  uint4 four;
  const std::size_t address = __cvta_generic_to_global(from);
  if constexpr (kStream) {
    asm volatile("ld.global.cs.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(four.x), "=r"(four.y), "=r"(four.z), "=r"(four.w)
                 : "l"(address));
  } else {
    asm volatile("ld.global.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(four.x), "=r"(four.y), "=r"(four.z), "=r"(four.w)
                 : "l"(address));
  }
  return four;
#else
  return *static_cast<const uint4*>(from);
#endif
}

template <bool kStream>
FD_HD uint2 read_two(const void* from) {
#if defined(__CUDA_ARCH__)
  uint2 two;
  const std::size_t address = __cvta_generic_to_global(from);
  if constexpr (kStream) {
    asm volatile("ld.global.cs.v2.u32 {%0, %1}, [%2];" : "=r"(two.x), "=r"(two.y) : "l"(address));
  } else {
    asm volatile("ld.global.v2.u32 {%0, %1}, [%2];" : "=r"(two.x), "=r"(two.y) : "l"(address));
  }
  return two;
#else
  return *static_cast<const uint2*>(from);
#endif
}

template <bool kStream, class Value>
FD_HD void write(void* to, Value value) {
#if defined(__CUDA_ARCH__)
  if constexpr (kStream) {
    __stcs(static_cast<Value*>(to), value);
    return;
  }
#endif
  *static_cast<Value*>(to) = value;
}

// kCount words from or to an address that is a multiple of 16, or of 8 for two words.
template <int kCount, bool kStream>
FD_HD void read_words(const void* from, std::uint32_t* words) {
  if constexpr (kCount == 2) {
    const uint2 two = read_two<kStream>(from);
    words[0] = two.x, words[1] = two.y;
  } else {
    for (int i = 0; i < kCount; i += 4) {
      const uint4 four = read_four<kStream>(static_cast<const std::uint32_t*>(from) + i);
      words[i] = four.x, words[i + 1] = four.y, words[i + 2] = four.z, words[i + 3] = four.w;
    }
  }
}

template <int kCount, bool kStream>
FD_HD void write_words(void* to, const std::uint32_t* words) {
  if constexpr (kCount == 2) {
    write<kStream>(to, uint2{words[0], words[1]});
  } else {
    for (int i = 0; i < kCount; i += 4) {
      write<kStream>(static_cast<std::uint32_t*>(to) + i, uint4{words[i], words[i + 1], words[i + 2], words[i + 3]});
    }
  }
}

// The first `count` of V elements of `size` bytes; the others become zero.
template <class T, int V>
FD_HD void read_elements(const void* from, int size, int count, Words<T, V>& words) {
  for (std::uint32_t& word : words.of) word = 0;
  if (size == 2) {
    const auto* data = static_cast<const unsigned short*>(from);
    for (int i = 0; i < V; ++i) {
      if (i < count) words.of[i / 2] |= static_cast<std::uint32_t>(read<unsigned short>(data + i)) << (i % 2 * 16);
    }
  } else if (size == 4) {
    const auto* data = static_cast<const std::uint32_t*>(from);
    for (int i = 0; i < V; ++i) {
      if (i < count) words.of[i] = read<unsigned>(data + i);
    }
  } else if constexpr (sizeof(T) == 8) {
    const auto* data = static_cast<const std::uint32_t*>(from);
    for (int i = 0; i < 2 * V; ++i) {
      if (i < 2 * count) words.of[i] = read<unsigned>(data + i);
    }
  }
}

template <int V>
FD_HD void write_elements(void* to, int size, int count, const Words<double, V>& words) {
  if (size == 2) {
    auto* data = static_cast<std::uint16_t*>(to);
    for (int i = 0; i < V; ++i) {
      if (i < count) data[i] = static_cast<std::uint16_t>(words.of[i / 2] >> (i % 2 * 16));
    }
  } else {
    auto* data = static_cast<std::uint32_t*>(to);
    for (int i = 0; i < 2 * V; ++i) {
      if (i < count * (size / 4)) data[i] = words.of[i];
    }
  }
}

// Two 16-bit numbers in a word, the first one in the low half.
FD_HD float2 halves_from(std::uint32_t word) {
  __half2_raw raw{};
  raw.x = static_cast<unsigned short>(word), raw.y = static_cast<unsigned short>(word >> 16);
  return __half22float2(__half2(raw));
}

FD_HD std::uint32_t halves_of(float low, float high) {
  const __half2_raw raw = __floats2half2_rn(low, high);
  return raw.x | static_cast<std::uint32_t>(raw.y) << 16;
}

FD_HD std::uint32_t bfloat16s_of(float low, float high) {
  const __nv_bfloat162_raw raw = __floats2bfloat162_rn(low, high);
  return raw.x | static_cast<std::uint32_t>(raw.y) << 16;
}

FD_HD double double_from(std::uint32_t low, std::uint32_t high) {
#if defined(__CUDA_ARCH__)
  return __hiloint2double(static_cast<int>(high), static_cast<int>(low));
#else
  const std::uint64_t bits = static_cast<std::uint64_t>(high) << 32 | low;
  double value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
#endif
}

FD_HD void double_to(double value, std::uint32_t* words) {
#if defined(__CUDA_ARCH__)
  words[0] = static_cast<std::uint32_t>(__double2loint(value));
  words[1] = static_cast<std::uint32_t>(__double2hiint(value));
#else
  std::memcpy(words, &value, sizeof value);
#endif
}

template <class T, int V>
FD_HD void decode(Dtype dtype, const Words<T, V>& words, T (&values)[V]) {
  if (dtype == Dtype::kFloat) {
    for (int i = 0; i < V; ++i) values[i] = float_from_bits(words.of[i]);
  } else if (dtype == Dtype::kHalf) {
    for (int i = 0; i < V; i += 2) {
      const float2 two = halves_from(words.of[i / 2]);
      values[i] = two.x, values[i + 1] = two.y;
    }
  } else if (dtype == Dtype::kBFloat16) {
    for (int i = 0; i < V; ++i) {
      values[i] = float_from_bits(i % 2 == 0 ? words.of[i / 2] << 16 : words.of[i / 2] & 0xffff0000u);
    }
  } else if constexpr (sizeof(T) == 8) {
    for (int i = 0; i < V; ++i) values[i] = double_from(words.of[2 * i], words.of[2 * i + 1]);
  }
}

// From float64 the 2-byte types go through float32, as everywhere in torch.
template <class T, int V>
FD_HD void encode(Dtype dtype, const T (&values)[V], Words<double, V>& words) {
  if (dtype == Dtype::kDouble) {
    for (int i = 0; i < V; ++i) double_to(values[i], words.of + 2 * i);
  } else if (dtype == Dtype::kFloat) {
    for (int i = 0; i < V; ++i) words.of[i] = bits_of(static_cast<float>(values[i]));
  } else {
    for (int i = 0; i < V; i += 2) {
      const float low = static_cast<float>(values[i]), high = static_cast<float>(values[i + 1]);
      words.of[i / 2] = dtype == Dtype::kHalf ? halves_of(low, high) : bfloat16s_of(low, high);
    }
  }
}

// V elements at an address of `dtype`, whole words if `whole`, else the first `count`.
template <bool kStream, class T, int V, class Offset>
FD_HD void load(const void* data, Dtype dtype, Offset offset, bool whole, int count, Words<T, V>& words) {
  const int size = size_of(dtype);
  const char* from = static_cast<const char*>(data) + static_cast<std::uint64_t>(offset) * size;
  if (!whole) {
    read_elements(from, size, count, words);
  } else if (size == 2) {
    read_words<V / 2, kStream>(from, words.of);
  } else if (size == 4) {
    read_words<V, kStream>(from, words.of);
  } else if constexpr (sizeof(T) == 8) {
    read_words<2 * V, kStream>(from, words.of);
  }
}

template <bool kStream, class T, int V, class Offset>
FD_HD void store(void* data, Dtype dtype, Offset offset, bool whole, int count, const T (&values)[V]) {
  const int size = size_of(dtype);
  char* to = static_cast<char*>(data) + static_cast<std::uint64_t>(offset) * size;
  Words<double, V> words;
  encode(dtype, values, words);
  if (!whole) {
    write_elements(to, size, count, words);
  } else if (size == 2) {
    write_words<V / 2, kStream>(to, words.of);
  } else if (size == 4) {
    write_words<V, kStream>(to, words.of);
  } else {
    write_words<2 * V, kStream>(to, words.of);
  }
}

}  // namespace fastdiff::cuda
