// What a normalisation is asked to do, free of dtypes and of torch, and the geometry that its kernels share.
#pragma once

#include <cmath>
#include <numeric>
#include <vector>

#include "engine.h"
#include "moments.h"
#include "parallel.h"

namespace fastdl {

struct Norm {
  Dtype dtype;
  int64_t samples, channels, positions;
  bool channels_last;
  const void *input, *residual;  // residual may be null
  Strides input_strides, residual_strides, output_strides;
  const double *weight, *bias;  // by channel; may be null
  double eps, parameter;
  Activation activation;
  bool activation_first;
};

struct NormGradients {
  const void* output;  // given
  Strides output_strides;
  void *input, *residual;  // wanted, with Norm's output_strides; may be null
  double *weight, *bias;   // wanted, by channel; always computed
};

template <class F>
void with_dtype(Dtype dtype, F&& f) {
  switch (dtype) {
    case Dtype::float32: return f(float{});
    case Dtype::float64: return f(double{});
    case Dtype::bfloat16: return f(BFloat16{});
    case Dtype::float16: return f(Float16{});
  }
}

// A square root and a division take as long as a short strip, so each is done once a group and not once a channel.
inline double reciprocal_deviation(const Norm& norm, double variance) { return 1 / std::sqrt(variance + norm.eps); }

// One channel's coefficients. The mean is split into what A holds and a remainder, which goes into the shift: at a mean of 1e4,
// float alone would be off by 5e-4.
struct Coefficients {
  double mean, reciprocal_deviation, weight, bias;

  Coefficients(double mean, double reciprocal_deviation, const Norm& norm, int64_t channel)
      : mean(mean),
        reciprocal_deviation(reciprocal_deviation),
        weight(norm.weight ? norm.weight[channel] : 1),
        bias(norm.bias ? norm.bias[channel] : 0) {}

  template <class A>
  double remainder() const {
    return mean - double(A(mean));
  }
  template <class A>
  Affine<A> affine() const {
    const double scale = reciprocal_deviation * weight;
    return {A(mean), A(scale), A(bias - remainder<A>() * scale)};
  }
  // From sum gu (x - center) to sum gu (x - mean) / deviation.
  template <class A>
  double normalized_product(double gradient_sum, double product_sum) const {
    return reciprocal_deviation * (product_sum - remainder<A>() * gradient_sum);
  }
  // gx = d (w gu - m1 - xhat m2), xhat = (x - mean) d, with d the reciprocal deviation and m1, m2 the means over the group of
  // w gu and of w gu xhat (both zero where the statistics are constants).
  template <class A>
  Slope<A> slope(double m1, double m2) const {
    const double d = reciprocal_deviation;
    return {A(d * weight), A(-d * d * m2), A(d * (d * m2 * remainder<A>() - m1))};
  }
};

// Coefficients of the columns of rows, an array each.
template <class A>
class ColumnCoefficients {
 public:
  explicit ColumnCoefficients(int64_t columns) : columns_(columns), values_(6 * columns) {}

  void set(int64_t column, Affine<A> map) {
    values_[column] = map.center;
    values_[column + columns_] = map.scale;
    values_[column + 2 * columns_] = map.shift;
  }
  void set(int64_t column, Slope<A> slope) {
    values_[column + 3 * columns_] = slope.by_gradient;
    values_[column + 4 * columns_] = slope.by_input;
    values_[column + 5 * columns_] = slope.constant;
  }
  AffineColumns<A> affine() const { return {values_.data(), values_.data() + columns_, values_.data() + 2 * columns_}; }
  SlopeColumns<A> slope() const {
    return {values_.data() + 3 * columns_, values_.data() + 4 * columns_, values_.data() + 5 * columns_};
  }

 private:
  int64_t columns_;
  std::vector<A> values_;
};

// How a tensor is seen as rows of columns, each column belonging to one channel.
//
// Channels last: a row is a position. With few channels, `replicas` positions make one row, so that vectors are full; what is left
// over is a shorter last row. NCHW with few positions: a row is a whole sample, and `inner` columns in turn belong to one channel.
struct RowPlan {
  int64_t channels, inner, replicas, columns;
  int64_t rows;           // whole rows in a sample, or in all samples if `flat`
  int64_t rest;           // columns of the shorter last row, or 0
  int64_t block, blocks;  // rows in a block, the unit of work, and how many
  bool flat;              // one run of rows through all samples

  // flat_if_dense: whether samples may be joined (batch norm), where all tensors are dense enough for it.
  RowPlan(const Norm& norm, const Strides* strides, int count, bool flat_if_dense) : channels(norm.channels) {
    bool dense_positions = true, dense_samples = true;
    for (int i = 0; i < count; ++i) {
      dense_positions &= strides[i].position == norm.channels;
      dense_samples &= strides[i].sample == norm.positions * strides[i].position || norm.samples == 1;
    }
    inner = norm.channels_last ? 1 : norm.positions;
    flat = flat_if_dense && (!norm.channels_last || dense_samples);
    int64_t total = norm.channels_last ? norm.positions : 1;
    if (flat) total = norm.channels_last ? norm.samples * norm.positions : norm.samples;
    replicas = 1;
    if (norm.channels_last && dense_positions && channels < 64 && total >= 64) {
      const int64_t full = 16 / std::gcd<int64_t>(channels, 16);  // positions that fill vectors of 16 exactly
      replicas = full * ((64 + full * channels - 1) / (full * channels));
    }
    columns = channels * inner * replicas;
    rows = total / replicas;
    rest = total % replicas * channels;
    block = 65536 / columns < 16 ? 16 : 65536 / columns;
    blocks = rows <= block ? 1 : (rows + block - 1) / block;
  }

  // In values, to the next four rows, which are read together. They are read column by column, and the processor's own prefetching
  // stops at the end of a page: without this the backward of group norm at (128, 64, 32, 32) took 6.2 ms, with it 4.6.
  int64_t next_rows(const Strides& strides) const { return 4 * (inner > 1 ? strides.sample : strides.position * replicas); }

  // To the next sample where this one stays in the cache (see fastdl::distance_ahead), else to the next rows.
  int64_t next_sample(const Strides& strides) const {
    return !flat && columns * rows + rest <= most_kept ? strides.sample : next_rows(strides);
  }

  int64_t channel(int64_t column) const { return column / inner % channels; }
  // Values of one channel in a block.
  double count(int64_t index) const {
    const int64_t first = index * block, last = first + block < rows ? first + block : rows;
    return double((last - first) * replicas + (index == blocks - 1 ? rest / channels : 0)) * double(inner);
  }

  template <class P>
  Rows<P> at(P* first, const Strides& strides, int64_t sample, int64_t row) const {
    if (!first) return {nullptr, 0};
    const int64_t stride = inner > 1 ? strides.sample : strides.position * replicas;
    return {first + sample * strides.sample + row * stride, stride};
  }

  // f(first row, rows, columns) over a range of blocks: their whole rows, then the shorter one if the last block is among them.
  template <class F>
  void visit(int64_t begin, int64_t end, F&& f) const {
    const int64_t first = begin * block, last = end * block < rows ? end * block : rows;
    if (last > first) f(first, last - first, columns);
    if (end == blocks && rest) f(rows, int64_t(1), rest);
  }
};

// f(offset, length) over segments of a run of n values: enough to share one run out over threads, the same for any number of them.
inline constexpr int64_t segment_length = 16384;
inline int64_t segment_count(int64_t n) { return n <= segment_length ? 1 : (n + segment_length - 1) / segment_length; }

}  // namespace fastdl
