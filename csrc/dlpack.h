// The part of DLPack 1 that looks at a tensor of another library from C, and PyTorch's table of functions for it
// (torch.Tensor.__dlpack_c_exchange_api__): https://dmlc.github.io/dlpack/latest/c_api.html
#pragma once

#include <cstdint>

namespace fastdiff::dlpack {

struct Tensor {
  void* data;
  std::int32_t device_type, device_index;
  std::int32_t ndim;
  std::uint8_t code, bits;
  std::uint16_t lanes;
  std::int64_t* shape;
  std::int64_t* strides;
  std::uint64_t byte_offset;
};

constexpr std::int32_t kCpu = 1;
constexpr std::uint8_t kInt = 0, kFloat = 2, kBFloat = 4;

struct Exchange {
  std::uint32_t major, minor;
  Exchange* older;
  void* others[3];
  int (*look)(void* object, Tensor* tensor);  // 0; or -1 with a Python exception. May be null.
};

}  // namespace fastdiff::dlpack
