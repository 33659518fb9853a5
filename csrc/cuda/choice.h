// Which kernel a job needs, decided on the host: numbers of columns, types, alignment, size.
#pragma once

#include <algorithm>
#include <cstdint>

#include "forms.cuh"
#include "words.cuh"

namespace fastdiff::cuda {

template <class... Forms>
struct FormList {};

// What plans launch in float32 throughout, learned variances and more than one guidance term aside: {x, F} or, in
// Heun's second stage, {x, F, F'}; with a guidance gradient after each F; with x0 clipped. ...
using FloatForms =
    FormList<Fixed<0, 1, 1>, Fixed<1, 0, 1>, Fixed<2, 0, 1>, Fixed<2, 0, 2>, Fixed<2, 1, 1>, Fixed<2, 1, 2>,
             Fixed<3, 0, 1>, Fixed<3, 0, 2>, Fixed<3, 1, 1>, Fixed<3, 1, 2>, Fixed<5, 0, 2>, Fixed<5, 1, 2>,
             Fixed<2, 0, 1, true>, Fixed<2, 0, 2, true>, Fixed<2, 1, 1, true>>;

// ... and with a network of type S: each F, but neither x, which comes first, nor a gradient.
template <Dtype S>
using ShortForms =
    FormList<Fixed<1, 0, 1, false, S, 0b1>, Fixed<2, 0, 1, false, S, 0b10>, Fixed<2, 0, 2, false, S, 0b10>,
             Fixed<2, 1, 1, false, S, 0b10>, Fixed<2, 1, 2, false, S, 0b10>, Fixed<3, 0, 2, false, S, 0b110>,
             Fixed<3, 1, 2, false, S, 0b110>, Fixed<3, 0, 1, false, S, 0b10>, Fixed<3, 0, 2, false, S, 0b10>,
             Fixed<3, 1, 1, false, S, 0b10>, Fixed<3, 1, 2, false, S, 0b10>, Fixed<5, 0, 2, false, S, 0b1010>,
             Fixed<5, 1, 2, false, S, 0b1010>, Fixed<2, 0, 1, true, S, 0b10>, Fixed<2, 0, 2, true, S, 0b10>,
             Fixed<2, 1, 1, true, S, 0b10>, Fixed<2, 1, 2, true, S, 0b10>>;

// Whether every sample's quads start at multiples of their own size, or of 16 bytes.
inline bool fits_words(const void* data, std::int64_t stride, Dtype dtype, std::int64_t batch) {
  const int bytes = std::min(16, 4 * size_of(dtype));
  const bool every_sample = batch <= 1 || stride * size_of(dtype) % bytes == 0;
  return every_sample && reinterpret_cast<std::uintptr_t>(data) % bytes == 0;
}

// Whether `condition` holds for the data, the stride and the type of every tensor [B, elements] of a job.
template <class Condition>
bool every_tensor(const Job& job, int outputs, const Condition& condition) {
  const auto column = [&](const Column& c) { return condition(c.data, c.stride, c.dtype); };
  const auto output = [&](const Output& o) { return condition(o.data, job.elements, o.dtype); };
  return std::all_of(job.columns, job.columns + job.inputs, column) && (!job.layout.learned || column(job.variance)) &&
         std::all_of(job.outputs, job.outputs + outputs, output);
}

inline bool fits_words(const Job& job, int outputs) {
  return every_tensor(job, outputs, [&](const void* data, std::int64_t stride, Dtype dtype) {
    return fits_words(data, stride, dtype, job.batch);
  });
}

// Elements that 32-bit offsets reach, with room for those that a last block would have behind the last sample.
constexpr std::int64_t kMostOffsets = (std::int64_t{1} << 32) - (1 << 16);

// Whether a job is one for Fixed forms, by everything but numbers and types of tensors.
inline bool fits_fixed(const Job& job, int outputs) {
  const auto has_short_offsets = [&](const void*, std::int64_t stride, Dtype) {
    return (job.batch - 1) * stride + job.elements <= kMostOffsets;
  };
  return !job.layout.learned && job.rows == nullptr && job.elements % 4 == 0 && fits_words(job, outputs) &&
         every_tensor(job, outputs, has_short_offsets);
}

template <class Form>
bool fits_form(const Job& job) {
  if (Form::kInputs != job.inputs || Form::kDraws != job.draws || Form::kOutputs != job.layout.outputs) return false;
  if (Form::kClamps != job.layout.clip) return false;
  for (int j = 0; j < job.inputs; ++j) {
    if (job.columns[j].dtype != Form::input(j)) return false;
  }
  for (int m = 0; m < job.layout.outputs; ++m) {
    const Dtype dtype = job.outputs[m].dtype;
    if (dtype != Dtype::kFloat && dtype != Form::kShort) return false;
  }
  return true;
}

// The form that adds up its draws one by one; without a clamp and a learned variance a row's sums are its outputs.
template <class T, class Function>
void choose_many(const Job& job, const Function& function) {
  return job.layout.clip || job.layout.learned ? function.template operator()<Many<T, RowLayout::kSums>>()
                                               : function.template operator()<Many<T, kMaxOutputs>>();
}

// Each calls function.template operator()<Form>() with the form of combine, sum_squares or normal that fits a job.
template <class Function>
void choose(const Job& job, const Function& function) {
  const auto take = [&]<class Form>() {
    const bool fits = fits_form<Form>(job);
    if (fits) function.template operator()<Form>();
    return fits;
  };
  const auto among = [&]<class... Forms>(FormList<Forms...>) { return (take.template operator()<Forms>() || ...); };
  if (job.draws > kFewDraws) {
    return job.compute == Dtype::kDouble ? choose_many<double>(job, function) : choose_many<float>(job, function);
  }
  if (job.compute == Dtype::kDouble) {
    return job.inputs <= 4 ? function.template operator()<Any<double, 4, kFewDraws>>()
                           : function.template operator()<Any<double, kMaxInputs, kFewDraws>>();
  }
  if (fits_fixed(job, job.layout.outputs) &&
      (among(FloatForms{}) || among(ShortForms<Dtype::kBFloat16>{}) || among(ShortForms<Dtype::kHalf>{}))) {
    return;
  }
  return job.inputs <= 4 ? function.template operator()<Any<float, 4, kFewDraws>>()
                         : function.template operator()<Any<float, kMaxInputs, kFewDraws>>();
}

template <class Function>
void choose_sum(const Job& job, const Function& function) {
  if (job.draws > kFewDraws) {
    return job.compute == Dtype::kDouble ? function.template operator()<Many<double, 1>>()
                                         : function.template operator()<Many<float, 1>>();
  }
  return job.compute == Dtype::kDouble ? function.template operator()<Any<double, kMaxInputs, kFewDraws>>()
                                       : function.template operator()<Any<float, kMaxInputs, kFewDraws>>();
}

template <class Function>
void choose_normal(const Job& job, const Function& function) {
  return fits_fixed(job, 1) && job.outputs[0].dtype == Dtype::kFloat ? function.template operator()<Fixed<0, 1, 1>>()
                                                                     : function.template operator()<Any<float, 0, 1>>();
}

// Quads of a thread where there are many: two, unless the values of both do not fit in 64 registers.
template <class Form>
constexpr int kManyQuads = Form::kInputs > 2 && Form::kDraws > 0 ? 1 : 2;

// Bytes of the tensors [B, ...] that a launch reads and writes.
inline std::int64_t traffic(const Job& job, int outputs) {
  std::int64_t bytes = 0;
  every_tensor(job, outputs, [&](const void*, std::int64_t stride, Dtype dtype) {
    bytes += (stride == 0 ? 1 : job.batch) * job.elements * size_of(dtype);
    return true;
  });
  return bytes;
}

}  // namespace fastdiff::cuda
