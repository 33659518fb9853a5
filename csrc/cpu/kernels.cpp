// The CPU loops. Compiled once per instruction set: FASTDIFF_LEVEL is v2, v3 or v4 (of x86-64) or generic. Everything
// but the exported table has internal linkage, so that no two levels can be mixed up by the linker.
//
// A sample is worked through in blocks that stay in the first-level cache: what is not of the compute type T is cast
// into a buffer, normals are made into another, then each output is one pass over the K columns. Of more draws than a
// few, no normals are kept: each is added to all sums of the row once it is made, in the same order.
#include "kernels.h"

#include "convert.h"
#include "normals.h"

#if !defined(FASTDIFF_LEVEL)
#error "FASTDIFF_LEVEL names the instruction set: v2, v3, v4 or generic"
#endif
#define FASTDIFF_JOIN(a, b) a##b
#define FASTDIFF_TABLE(level) FASTDIFF_JOIN(kernels_, level)
#define FASTDIFF_TEXT(level) #level
#if defined(__x86_64__)
#define FASTDIFF_NAME(level) "x86-64-" FASTDIFF_TEXT(level)
#else
#define FASTDIFF_NAME(level) FASTDIFF_TEXT(level)
#endif

namespace fastdiff {
namespace {

template <class T>
constexpr Dtype dtype_of = sizeof(T) == sizeof(float) ? Dtype::kFloat : Dtype::kDouble;
template <class T>
constexpr std::int64_t kBlock = 4096 / static_cast<std::int64_t>(sizeof(T));
constexpr std::int64_t kStep = 4 * kGroupStep;  // normals made together

std::int64_t least(std::int64_t a, std::int64_t b) { return a < b ? a : b; }

// Normals of elements begin .. begin + count - 1 into `buffer`, which has room for kStep + 3 more: a run starts at a
// group of four and ends with a step. Returns where element `begin` is.
const float* draw_normals(const Generator& generator, std::int64_t begin, std::int64_t count, float* buffer) {
  const std::int64_t first = begin / 4;
  const std::int64_t skip = begin - 4 * first;
  for (std::int64_t at = 0; at < skip + count; at += kStep) {
    generator(static_cast<std::uint32_t>(first + at / 4), buffer + at);
  }
  return buffer + skip;
}

// ---------------------------------------------------------------------------------------------------------------------
// Weighted sums: y = w_0 v_0 + w_1 v_1 + ..., or y += factor (...), K known to the compiler
// ---------------------------------------------------------------------------------------------------------------------

template <class T, int K>
void weighted(const T* weights, const T* const* values, const T* factors, std::int64_t count, T* __restrict out) {
  T w[K > 0 ? K : 1];
  for (int k = 0; k < K; ++k) w[k] = weights[k];
  const auto sum_at = [&](std::int64_t i) {
    T sum = K > 0 ? mul(w[0], values[0][i]) : T(0);
#pragma GCC unroll 16
    for (int k = 1; k < K; ++k) sum = add(sum, mul(w[k], values[k][i]));
    return sum;
  };
  if (factors == nullptr) {
    for (std::int64_t i = 0; i < count; ++i) out[i] = sum_at(i);
  } else {
    for (std::int64_t i = 0; i < count; ++i) out[i] = add(out[i], mul(factors[i], sum_at(i)));
  }
}

template <class T>
void weighted(const T* weights, const T* const* values, int columns, const T* factors, std::int64_t count, T* out) {
  using Function = void (*)(const T*, const T* const*, const T*, std::int64_t, T*);
  static constexpr Function kByColumns[kMaxInputs + kFewDraws + 1] = {
      weighted<T, 0>, weighted<T, 1>, weighted<T, 2>, weighted<T, 3>, weighted<T, 4>, weighted<T, 5>,
      weighted<T, 6>, weighted<T, 7>, weighted<T, 8>, weighted<T, 9>, weighted<T, 10>};
  kByColumns[columns](weights, values, factors, count, out);
}

// sums += weight normals
template <class T>
void add_term(T weight, const float* normals, std::int64_t count, T* __restrict sums) {
  for (std::int64_t i = 0; i < count; ++i) sums[i] = add(sums[i], mul(weight, static_cast<T>(normals[i])));
}

// ---------------------------------------------------------------------------------------------------------------------
// One run of elements of one sample
// ---------------------------------------------------------------------------------------------------------------------

// `kMany`: there are more than kFewDraws draws.
template <class T, bool kMany>
class Run {
 public:
  Run(const Job& job, std::int64_t sample) : job_(job), layout_(job.layout), sample_(sample) {
    row_ = static_cast<const T*>(job.table) + (job.rows != nullptr ? job.rows[sample] : 0) * layout_.width();
  }

  // Brings elements at .. at + count - 1 (at most kBlock) of every column, of p and of e into reach.
  void load(std::int64_t at, std::int64_t count) {
    count_ = count;
    for (int j = 0; j < job_.inputs; ++j) values_[j] = read(job_.columns[j], at, buffers_[j]);
    for (int n = 0; n < held_draws(); ++n) {
      values_[job_.inputs + n] = as_columns(draw(n, at, normals_[n]), buffers_[job_.inputs + n]);
    }
    if constexpr (kMany) add_up(at);
    if (layout_.clip) {
      sum(RowLayout::kP, nullptr, clipped_);
      const T low = row_[layout_.low()];
      const T high = row_[layout_.high()];
      for (std::int64_t i = 0; i < count; ++i) clipped_[i] = clamp(clipped_[i], low, high);
    }
    if (layout_.learned) {
      const T* variance = read(job_.variance, at, factors_);
      const T slope = row_[layout_.slope()];
      const T intercept = row_[layout_.intercept()];
      for (std::int64_t i = 0; i < count; ++i) factors_[i] = exponential(add(mul(slope, variance[i]), intercept));
    }
  }

  // Output m of the block that is loaded.
  void compute(int m, T* out) const {
    sum(m, nullptr, out);
    if (layout_.clip) {
      const T weight = row_[layout_.clip_weight(m)];
      for (std::int64_t i = 0; i < count_; ++i) out[i] = add(out[i], mul(weight, clipped_[i]));
    }
    if (layout_.squared) {
      alignas(64) T scaled[kBlock<T>];
      sum(RowLayout::kE + m, nullptr, scaled);
      sum(RowLayout::kD + m, factors_, scaled);
      for (std::int64_t i = 0; i < count_; ++i) out[i] = add(out[i], mul(factors_[i], scaled[i]));
    } else if (layout_.learned) {
      sum(RowLayout::kE + m, factors_, out);
    }
  }

 private:
  int held_draws() const { return kMany ? kFewDraws : job_.draws; }

  // Weighted sum `number` of the row; with factors, out += factors sum.
  void sum(int number, const T* factors, T* out) const {
    if constexpr (kMany) {
      const T* const whole = sums_[number];
      if (factors == nullptr) {
        for (std::int64_t i = 0; i < count_; ++i) out[i] = whole[i];
      } else {
        for (std::int64_t i = 0; i < count_; ++i) out[i] = add(out[i], mul(factors[i], whole[i]));
      }
    } else {
      weighted(row_ + layout_.place(number), values_, layout_.columns, factors, count_, out);
    }
  }

  // All sums of the row: first the columns held, then the other draws one by one.
  void add_up(std::int64_t at) {
    const int held = job_.inputs + kFewDraws;
    for (int s = 0; s < RowLayout::kSums; ++s) {
      const int first = layout_.place(s);
      if (first >= 0) weighted(row_ + first, values_, held, static_cast<const T*>(nullptr), count_, sums_[s]);
    }
    for (int n = kFewDraws; n < job_.draws; ++n) {
      const float* normals = draw(n, at, normals_[0]);
      for (int s = 0; s < RowLayout::kSums; ++s) {
        const int first = layout_.place(s);
        if (first >= 0) add_term(row_[first + job_.inputs + n], normals, count_, sums_[s]);
      }
    }
  }

  const float* draw(int n, std::int64_t at, float* buffer) const {
    const Generator generator(static_cast<std::uint64_t>(job_.seeds[sample_]), job_.draw_numbers[n]);
    return draw_normals(generator, at, count_, buffer);
  }

  const T* read(const Column& column, std::int64_t at, T* buffer) const {
    const std::int64_t from = sample_ * column.stride + at;
    if (column.dtype == dtype_of<T>) return static_cast<const T*>(column.data) + from;
    read_as(column.dtype, column.data, from, count_, buffer);
    return buffer;
  }

  const float* as_columns(const float* normals, float*) const { return normals; }
  const double* as_columns(const float* normals, double* buffer) const {
    for (std::int64_t i = 0; i < count_; ++i) buffer[i] = static_cast<double>(normals[i]);
    return buffer;
  }

  const Job& job_;
  const RowLayout layout_;
  const std::int64_t sample_;
  const T* row_;
  std::int64_t count_ = 0;
  const T* values_[kMaxInputs + kFewDraws];
  alignas(64) T buffers_[kMaxInputs + kFewDraws][kBlock<T>];
  alignas(64) T clipped_[kBlock<T>];
  alignas(64) T factors_[kBlock<T>];
  alignas(64) float normals_[kFewDraws][kBlock<T> + kStep + 4];
  alignas(64) T sums_[kMany ? RowLayout::kSums : 1][kBlock<T>];
};

template <class T, bool kMany>
void combine_run(const Job& job, std::int64_t sample, std::int64_t begin, std::int64_t end) {
  Run<T, kMany> run(job, sample);
  alignas(64) T buffer[kBlock<T>];
  for (std::int64_t at = begin; at < end; at += kBlock<T>) {
    const std::int64_t count = least(kBlock<T>, end - at);
    run.load(at, count);
    for (int m = 0; m < job.layout.outputs; ++m) {
      const Output& output = job.outputs[m];
      const std::int64_t to = sample * job.elements + at;
      if (output.dtype == dtype_of<T>) {
        run.compute(m, static_cast<T*>(output.data) + to);
      } else {
        run.compute(m, buffer);
        write_as(output.dtype, buffer, count, output.data, to);
      }
    }
  }
}

// Eight sums side by side, element i in sum i mod 8, then added in pairs: the same order on every instruction set.
template <class T, bool kMany>
double sum_squares_run(const Job& job, std::int64_t sample, std::int64_t begin, std::int64_t end) {
  Run<T, kMany> run(job, sample);
  alignas(64) T buffer[kBlock<T>];
  alignas(64) double sums[8] = {};
  for (std::int64_t at = begin; at < end; at += kBlock<T>) {
    const std::int64_t count = least(kBlock<T>, end - at);
    run.load(at, count);
    run.compute(0, buffer);
    for (std::int64_t i = count; i % 8 != 0; ++i) buffer[i] = T(0);
    for (std::int64_t i = 0; i < count; i += 8) {
      for (int k = 0; k < 8; ++k) {
        const double value = static_cast<double>(buffer[i + k]);
        sums[k] = add(sums[k], mul(value, value));
      }
    }
  }
  return ((sums[0] + sums[4]) + (sums[2] + sums[6])) + ((sums[1] + sums[5]) + (sums[3] + sums[7]));
}

// Calls function.template operator()<T, kMany>() with those of a job.
template <class Function>
auto choose(const Job& job, const Function& function) {
  const bool many = job.draws > kFewDraws;
  if (job.compute == Dtype::kFloat) {
    return many ? function.template operator()<float, true>() : function.template operator()<float, false>();
  }
  return many ? function.template operator()<double, true>() : function.template operator()<double, false>();
}

void combine(const Job& job, std::int64_t sample, std::int64_t begin, std::int64_t end) {
  choose(job, [&]<class T, bool kMany>() { combine_run<T, kMany>(job, sample, begin, end); });
}

double sum_squares(const Job& job, std::int64_t sample, std::int64_t begin, std::int64_t end) {
  return choose(job, [&]<class T, bool kMany>() { return sum_squares_run<T, kMany>(job, sample, begin, end); });
}

void normal(std::int64_t seed, std::uint32_t draw, std::int64_t begin, std::int64_t end, Dtype dtype, void* out) {
  const Generator generator(static_cast<std::uint64_t>(seed), draw);
  std::int64_t at = begin;
  if (dtype == Dtype::kFloat && begin % 4 == 0) {  // whole steps need no buffer
    for (; end - at >= kStep; at += kStep) {
      generator(static_cast<std::uint32_t>(at / 4), static_cast<float*>(out) + (at - begin));
    }
  }
  alignas(64) float buffer[kBlock<float> + kStep + 4];
  for (; at < end; at += kBlock<float>) {
    const std::int64_t count = least(kBlock<float>, end - at);
    write_as(dtype, draw_normals(generator, at, count, buffer), count, out, at - begin);
  }
}

}  // namespace

extern const Kernels FASTDIFF_TABLE(FASTDIFF_LEVEL);
const Kernels FASTDIFF_TABLE(FASTDIFF_LEVEL) = {FASTDIFF_NAME(FASTDIFF_LEVEL), combine, sum_squares, normal};

}  // namespace fastdiff
