// Which kernel a job needs, decided on the host: types, numbers of columns, alignment.
#pragma once

#include <algorithm>
#include <cstdint>

#include "words.cuh"

namespace fastdiff::cuda {

// Whether every sample's groups of V elements start at multiples of their own size, or of 16 bytes.
inline bool fits_words(const void* data, std::int64_t stride, Dtype dtype, std::int64_t batch, int V) {
  const int bytes = std::min(16, V * size_of(dtype));
  const bool every_sample = batch <= 1 || stride * size_of(dtype) % bytes == 0;
  return every_sample && reinterpret_cast<std::uintptr_t>(data) % bytes == 0;
}

inline bool fits_words(const Job& job, int outputs, int V) {
  const auto column_fits = [&](const Column& c) { return fits_words(c.data, c.stride, c.dtype, job.batch, V); };
  const auto output_fits = [&](const Output& o) { return fits_words(o.data, job.elements, o.dtype, job.batch, V); };
  return std::all_of(job.columns, job.columns + job.inputs, column_fits) &&
         (!job.layout.learned || column_fits(job.variance)) &&
         std::all_of(job.outputs, job.outputs + outputs, output_fits);
}

// Whether combine moves 2-byte elements: eight of them make a 16-byte word.
inline bool has_short_types(const Job& job) {
  const auto is_short = [](const auto& tensor) { return size_of(tensor.dtype) == 2; };
  return std::any_of(job.columns, job.columns + job.inputs, is_short) ||
         std::any_of(job.outputs, job.outputs + job.layout.outputs, is_short);
}

// Calls function.template operator()<T, J, N>(), J no less than the number of inputs.
template <class Function>
void choose(const Job& job, const Function& function) {
  const auto with_inputs = [&]<class T, int J>() {
    if (job.draws == 0) return function.template operator()<T, J, 0>();
    if (job.draws == 1) return function.template operator()<T, J, 1>();
    return function.template operator()<T, J, 2>();
  };
  const auto with_type = [&]<class T>() {
    if (job.inputs <= 2) return with_inputs.template operator()<T, 2>();
    if (job.inputs <= 4) return with_inputs.template operator()<T, 4>();
    return with_inputs.template operator()<T, kMaxInputs>();
  };
  return job.compute == Dtype::kDouble ? with_type.template operator()<double>()
                                       : with_type.template operator()<float>();
}

// Elements of combine to a thread: eight where they make a 16-byte word of a 2-byte type and fill a large GPU even so.
inline int elements_per_thread(const Job& job) {
  const bool many = job.batch * job.elements >= 1 << 20;
  const bool simple = job.compute == Dtype::kFloat && job.inputs <= 2;
  return many && simple && has_short_types(job) && fits_words(job, job.layout.outputs, 8) ? 8 : 4;
}

}  // namespace fastdiff::cuda
