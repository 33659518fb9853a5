// What one thread does: Q quads of one sample. A quad is four consecutive elements, the ones that share a Philox block.
//
// The quads of a thread lie blockDim.x apart, not side by side: every access of a warp covers whole cache lines.
// Everything here is a host function too, so that a test without a GPU can run these very lines in a loop.
#pragma once

#include "forms.cuh"
#include "words.cuh"

namespace fastdiff::cuda {

// Where the quads `first`, first + step, ... of a sample are. `kStream`: see words.cuh.
template <class Form, int Q, bool kStream>
struct Unit {
  using Offset = typename Form::Offset;

  std::uint32_t sample, first, step;
  Offset elements;  // of a sample
  bool aligned;

  FD_HD std::uint32_t quad(int q) const { return first + static_cast<std::uint32_t>(q) * step; }
  FD_HD Offset position(int q) const { return 4 * static_cast<Offset>(quad(q)); }
  FD_HD bool is_inside(int q) const { return position(q) < elements; }

  FD_HD bool exists(const Job& job) const { return sample < static_cast<Offset>(job.batch) && is_inside(0); }

  FD_HD int count(int q) const {
    if constexpr (Form::kFixed) return 4;
    const Offset left = elements - position(q);
    return left < 4 ? static_cast<int>(left) : 4;
  }

  FD_HD bool whole(int q) const { return Form::kFixed || (aligned && count(q) == 4); }

  // Loads are unconditional: a quad behind the sample's last one reads the last one again, and writes nothing.
  FD_HD Offset offset(int q, std::int64_t stride) const {
    const Offset last = elements - 4;
    const Offset from = q > 0 && position(q) > last ? last : position(q);
    return sample * static_cast<Offset>(stride) + from;
  }

  template <class T>
  FD_HD void load(const Column& column, Dtype dtype, int q, Words<T, 4>& words) const {
    cuda::load<kStream>(column.data, dtype, offset(q, column.stride), whole(q), count(q), words);
  }

  template <class T>
  FD_HD void store(const Output& output, int q, const T (&values)[4]) const {
    if (q > 0 && !is_inside(q)) return;
    const auto as = [&](Dtype dtype) {
      cuda::store<kStream>(output.data, dtype, offset(q, elements), whole(q), count(q), values);
    };
    if constexpr (!Form::kFixed) {
      as(output.dtype);
    } else if (Form::kShort != Dtype::kFloat && output.dtype == Form::kShort) {
      as(Form::kShort);
    } else {
      as(Dtype::kFloat);
    }
  }

  FD_HD void make_normals(std::uint64_t seed, std::uint32_t draw, int q, float (&z)[4]) const {
    const Normals4 four = normals4(seed, draw, quad(q));
    z[0] = four.z0, z[1] = four.z1, z[2] = four.z2, z[3] = four.z3;
  }
};

// The row of the table that is a sample's.
template <class Form>
FD_HD std::int64_t row_of(const Job& job, std::uint32_t sample) {
  return Form::kFixed || job.rows == nullptr ? 0 : read<long long>(job.rows + sample);
}

// A row: in registers for Fixed, to be read ahead of the noise; else brought near, and read where it is used.
template <class Form>
struct Row {
  using T = typename Form::Compute;

  const T* data;
  T weights[Form::kWeights];

  FD_HD Row(const Job& job, std::int64_t index) : data(static_cast<const T*>(job.table)) {
    if constexpr (Form::kFixed) {
      for (int i = 0; i < Form::kWeights; ++i) weights[i] = read<T>(data + i);
    } else {
      data += index * job.layout.width();
      prefetch(data, job.layout.width());
    }
  }

  FD_HD T operator()(int i) const {
    if constexpr (Form::kFixed) return weights[i];
    return read<T>(data + i);
  }
};

// The columns v_k of a unit.
template <class Form, int Q, bool kStream>
struct Values {
  using T = typename Form::Compute;
  static constexpr int kInputs = Form::kInputs, kDraws = Form::kDraws;

  T input[kInputs > 0 ? kInputs : 1][Q][4];
  float normal[kDraws > 0 ? kDraws : 1][Q][4];
  T sums[Form::kSums > 0 ? Form::kSums : 1][4];
  Words<T, 4> words[kInputs > 0 ? kInputs : 1][Q];

  FD_HD void load(const Job& job, const Unit<Form, Q, kStream>& unit) {
    for (int j = 0; j < kInputs; ++j) {
      for (int q = 0; q < Q; ++q) {
        if (j < Form::inputs(job)) unit.load(job.columns[j], dtype(job, j), q, words[j][q]);
      }
    }
  }

  FD_HD void make_normals(const Job& job, const Unit<Form, Q, kStream>& unit, std::uint64_t seed) {
    for (int n = 0; n < kDraws; ++n) {
      for (int q = 0; q < Q; ++q) {
        if (n < Form::draws(job)) unit.make_normals(seed, job.draw_numbers[n], q, normal[n][q]);
      }
    }
  }

  FD_HD void decode(const Job& job) {
    for (int j = 0; j < kInputs; ++j) {
      for (int q = 0; q < Q; ++q) {
        if (j < Form::inputs(job)) cuda::decode(dtype(job, j), words[j][q], input[j][q]);
      }
    }
  }

  // For Form::kSums: all sums of the row, each column added to them as it is read or made.
  FD_HD void add_up(const Job& job, const Unit<Form, Q, kStream>& unit, const Row<Form>& row, std::uint64_t seed) {
#if defined(__CUDA_ARCH__)
#pragma unroll 1
#endif
    for (int j = 0; j < job.inputs; ++j) {
      T values[4];
      unit.load(job.columns[j], job.columns[j].dtype, 0, words[0][0]);
      cuda::decode(job.columns[j].dtype, words[0][0], values);
      add_column(job, row, j, values);
    }
#if defined(__CUDA_ARCH__)
#pragma unroll 1
#endif
    for (int n = 0; n < job.draws; ++n) {
      float values[4];
      unit.make_normals(seed, job.draw_numbers[n], 0, values);
      add_column(job, row, job.inputs + n, values);
    }
  }

  // Weighted sum `number` of quad q, whose weights begin at `at` in the row.
  FD_HD void sum(const Job& job, const Row<Form>& row, int at, int number, int q, T (&result)[4]) const {
    if constexpr (Form::kSums > 0) {
      for (int i = 0; i < 4; ++i) result[i] = sums[number][i];
    } else {
      add_columns(job, row, at, q, result);
    }
  }

 private:
  // row(at) v_0 + row(at + 1) v_1 + ... of quad q, from the left, as combine.h's weighted_sum.
  FD_HD void add_columns(const Job& job, const Row<Form>& row, int at, int q, T (&result)[4]) const {
    const int inputs = Form::inputs(job), draws = Form::draws(job);
    for (int i = 0; i < 4; ++i) result[i] = T(0);
    for (int j = 0; j < kInputs; ++j) {
      if (j < inputs) add_term(row(at + j), input[j][q], j == 0, result);
    }
    for (int n = 0; n < kDraws; ++n) {
      if (n < draws) add_term(row(at + inputs + n), normal[n][q], n == 0 && inputs == 0, result);
    }
  }

  FD_HD static constexpr Dtype dtype(const Job& job, int j) {
    if constexpr (Form::kFixed) {
      return Form::input(j);
    } else {
      return job.columns[j].dtype;
    }
  }

  // Column k to all sums.
  template <class Element>
  FD_HD void add_column(const Job& job, const Row<Form>& row, int k, const Element (&values)[4]) {
    for (int s = 0; s < Form::kSums; ++s) {
      const int at = Form::layout(job).place(s);
      if (at >= 0) add_term(row(at + k), values, k == 0, sums[s]);
    }
  }

  template <class Element>
  FD_HD static void add_term(T weight, const Element (&values)[4], bool is_first, T (&sums)[4]) {
    for (int i = 0; i < 4; ++i) {
      const T term = mul(weight, static_cast<T>(values[i]));
      sums[i] = is_first ? term : add(sums[i], term);
    }
  }
};

template <class Form>
FD_HD std::uint64_t seed_of(const Job& job, std::uint32_t sample) {
  if ((Form::kDraws == 0 && Form::kSums == 0) || Form::draws(job) == 0) return 0;
  return static_cast<std::uint64_t>(read<long long>(job.seeds + sample));
}

// fastdiff::combine for one unit; combine.h says in words what is done to each element. The order is that of the
// memory's latencies: seed and row first, as something waits for them, then all loads, then the noise, then the sums.
template <class Form, int Q, bool kStream>
FD_HD void combine_unit(const Job& job, const Unit<Form, Q, kStream>& unit) {
  using T = typename Form::Compute;
  const RowLayout layout = Form::layout(job);
  const std::uint64_t seed = seed_of<Form>(job, unit.sample);
  const std::int64_t index = row_of<Form>(job, unit.sample);
  Values<Form, Q, kStream> values;
  values.load(job, unit);
  Words<T, 4> variance[Q];
  for (int q = 0; q < Q; ++q) {
    if (layout.learned) unit.load(job.variance, job.variance.dtype, q, variance[q]);
  }
  const Row<Form> row(job, index);
  values.make_normals(job, unit, seed);
  values.decode(job);
  if constexpr (Form::kSums > 0) values.add_up(job, unit, row, seed);
  for (int q = 0; q < Q; ++q) {
    T clipped[4], factor[4];
    if (layout.clip) {
      values.sum(job, row, layout.clipped(), RowLayout::kP, q, clipped);
      const T low = row(layout.low()), high = row(layout.high());
      for (int i = 0; i < 4; ++i) clipped[i] = clamp(clipped[i], low, high);
    }
    if (layout.learned) {
      decode(job.variance.dtype, variance[q], factor);
      const T slope = row(layout.slope()), intercept = row(layout.intercept());
      for (int i = 0; i < 4; ++i) factor[i] = exponential(add(mul(slope, factor[i]), intercept));
    }
#if defined(__CUDA_ARCH__)
#pragma unroll Form::kOutputs
#endif
    for (int m = 0; m < Form::most_outputs(job); ++m) {
      if (Form::kSums > 0 && m >= layout.outputs) continue;
      T result[4];
      values.sum(job, row, layout.coefficient(m), m, q, result);
      if (layout.clip) {
        const T weight = row(layout.clip_weight(m));
        for (int i = 0; i < 4; ++i) result[i] = add(result[i], mul(weight, clipped[i]));
      }
      if (layout.learned) {
        T scaled[4];
        values.sum(job, row, layout.learned_coefficient(m), RowLayout::kE + m, q, scaled);
        if (layout.squared) {
          T squared[4];
          values.sum(job, row, layout.squared_coefficient(m), RowLayout::kD + m, q, squared);
          for (int i = 0; i < 4; ++i) scaled[i] = add(scaled[i], mul(factor[i], squared[i]));
        }
        for (int i = 0; i < 4; ++i) result[i] = add(result[i], mul(factor[i], scaled[i]));
      }
      unit.store(job.outputs[m], q, result);
    }
  }
}

// The sum of squares of the one combination of a row for one unit, elements in order.
template <class Form>
FD_HD double sum_squares_unit(const Job& job, const Unit<Form, 1, false>& unit) {
  using T = typename Form::Compute;
  const std::uint64_t seed = seed_of<Form>(job, unit.sample);
  const std::int64_t index = row_of<Form>(job, unit.sample);
  Values<Form, 1, false> values;
  values.load(job, unit);
  const Row<Form> row(job, index);
  values.make_normals(job, unit, seed);
  values.decode(job);
  if constexpr (Form::kSums > 0) values.add_up(job, unit, row, seed);
  T result[4];
  values.sum(job, row, 0, 0, 0, result);
  double sum = 0;
  for (int i = 0; i < 4; ++i) {
    const double wide = i < unit.count(0) ? static_cast<double>(result[i]) : 0.0;
    sum = add(sum, mul(wide, wide));
  }
  return sum;
}

template <class Form, int Q, bool kStream>
FD_HD void normal_unit(const Job& job, const Unit<Form, Q, kStream>& unit) {
  const std::uint64_t seed = seed_of<Form>(job, unit.sample);
  float z[Q][4];
  for (int q = 0; q < Q; ++q) unit.make_normals(seed, job.draw_numbers[0], q, z[q]);
  for (int q = 0; q < Q; ++q) unit.store(job.outputs[0], q, z[q]);
}

}  // namespace fastdiff::cuda
