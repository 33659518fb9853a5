// What one thread does: V consecutive elements of one sample, V a multiple of the four that share a Philox block.
//
// Everything here is a host function too, so that a test without a GPU can run these very lines in a loop.
#pragma once

#include "words.cuh"

namespace fastdiff::cuda {

// The first `count` of elements V index .. V index + V - 1 of a sample; `whole` if all V may move as whole words.
// Small integers: everything else is derived from them where it is needed.
template <int V>
struct Unit {
  std::uint32_t sample, index;
  int count;
  bool whole;

  FD_HD Unit(std::uint32_t sample, std::uint32_t index, std::int64_t elements, bool aligned)
      : sample(sample), index(index) {
    const std::int64_t left = elements - first();
    count = left < V ? static_cast<int>(left) : V;
    whole = aligned && left >= V;
  }

  FD_HD std::int64_t first() const { return static_cast<std::int64_t>(index) * V; }

  template <class T>
  FD_HD void load(const Column& column, Words<T, V>& words) const {
    cuda::load(column.data, column.dtype, sample * column.stride + first(), whole, count, words);
  }

  template <class T>
  FD_HD void store(const Output& output, std::int64_t elements, const T (&values)[V]) const {
    cuda::store(output.data, output.dtype, sample * elements + first(), whole, count, values);
  }

  FD_HD void make_normals(const std::int64_t* seeds, std::uint32_t draw, float (&z)[V]) const {
    const auto seed = static_cast<std::uint64_t>(read<long long>(seeds + sample));
    for (int i = 0; i < V; i += 4) {
      const Normals4 four = normals4(seed, draw, index * (V / 4) + i / 4);
      z[i] = four.z0, z[i + 1] = four.z1, z[i + 2] = four.z2, z[i + 3] = four.z3;
    }
  }
};

// The columns v_k of a unit: up to J inputs, exactly N draws.
template <class T, int J, int N, int V>
struct Values {
  T input[J][V];
  float normal[N > 0 ? N : 1][V];

  // The loads come first: they are under way while the Philox rounds run.
  FD_HD Values(const Job& job, const Unit<V>& unit) {
    Words<T, V> words[J];
    for (int j = 0; j < J; ++j) {
      if (j < job.inputs) unit.load(job.columns[j], words[j]);
    }
    for (int n = 0; n < N; ++n) unit.make_normals(job.seeds, job.draw_numbers[n], normal[n]);
    for (int j = 0; j < J; ++j) {
      if (j < job.inputs) decode(job.columns[j].dtype, words[j], input[j]);
    }
  }

  // weights[0] v_0 + weights[1] v_1 + ..., from the left, as combine.h's weighted_sum.
  FD_HD void sum(const T* weights, int inputs, T (&sums)[V]) const {
    for (int i = 0; i < V; ++i) sums[i] = T(0);
    for (int j = 0; j < J; ++j) {
      if (j >= inputs) continue;
      const T weight = read<T>(weights + j);
      for (int i = 0; i < V; ++i) {
        const T term = mul(weight, input[j][i]);
        sums[i] = j > 0 ? add(sums[i], term) : term;
      }
    }
    for (int n = 0; n < N; ++n) {
      const T weight = read<T>(weights + inputs + n);
      for (int i = 0; i < V; ++i) {
        const T term = mul(weight, static_cast<T>(normal[n][i]));
        sums[i] = n > 0 || inputs > 0 ? add(sums[i], term) : term;
      }
    }
  }
};

template <class T>
FD_HD const T* row_of(const Job& job, std::uint32_t sample) {
  const std::int64_t row = job.rows != nullptr ? read<long long>(job.rows + sample) : 0;
  return static_cast<const T*>(job.table) + row * job.layout.width();
}

// fastdiff::combine for one unit; combine.h says in words what is done to each element.
template <class T, int J, int N, int V>
FD_HD void combine_unit(const Job& job, const Unit<V>& unit) {
  const RowLayout& layout = job.layout;
  const T* row = row_of<T>(job, unit.sample);
  Words<T, V> variance;
  if (layout.learned) unit.load(job.variance, variance);
  const Values<T, J, N, V> values(job, unit);
  T clipped[V], factor[V];
  if (layout.clip) {
    values.sum(row + layout.clipped(), job.inputs, clipped);
    const T low = read<T>(row + layout.low()), high = read<T>(row + layout.high());
    for (int i = 0; i < V; ++i) clipped[i] = clamp(clipped[i], low, high);
  }
  if (layout.learned) {
    decode(job.variance.dtype, variance, factor);
    const T slope = read<T>(row + layout.slope()), intercept = read<T>(row + layout.intercept());
    for (int i = 0; i < V; ++i) factor[i] = exponential(add(mul(slope, factor[i]), intercept));
  }
#if defined(__CUDA_ARCH__)
#pragma unroll 1
#endif
  for (int m = 0; m < layout.outputs; ++m) {
    T result[V];
    values.sum(row + layout.coefficient(m), job.inputs, result);
    if (layout.clip) {
      const T weight = read<T>(row + layout.clip_weight(m));
      for (int i = 0; i < V; ++i) result[i] = add(result[i], mul(weight, clipped[i]));
    }
    if (layout.learned) {
      T scaled[V];
      values.sum(row + layout.learned_coefficient(m), job.inputs, scaled);
      for (int i = 0; i < V; ++i) result[i] = add(result[i], mul(factor[i], scaled[i]));
    }
    unit.store(job.outputs[m], job.elements, result);
  }
}

// The sum of squares of the one combination of a row for one unit, elements in order.
template <class T, int J, int N, int V>
FD_HD double sum_squares_unit(const Job& job, const Unit<V>& unit) {
  const Values<T, J, N, V> values(job, unit);
  T result[V];
  values.sum(row_of<T>(job, unit.sample), job.inputs, result);
  double sum = 0;
  for (int i = 0; i < V; ++i) {
    const double wide = i < unit.count ? static_cast<double>(result[i]) : 0.0;
    sum = add(sum, mul(wide, wide));
  }
  return sum;
}

template <int V>
FD_HD void normal_unit(const Job& job, const Unit<V>& unit) {
  float z[V];
  unit.make_normals(job.seeds, job.draw_numbers[0], z);
  unit.store(job.outputs[0], job.elements, z);
}

}  // namespace fastdiff::cuda
