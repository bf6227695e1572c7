// The backward of layer_norm (`centered`) and rms_norm, with xhat = (s - mean) rstd and g = grad_output weight:
//   ds = rstd (g - mean(g) - xhat mean(g xhat)) + grad_sum,   grad_weight = sum grad_output xhat,   grad_bias = sum grad_output,
// where rms_norm has neither mean. Both passes over a row come with it from memory once.
#pragma once

#include "row_norm_rows.h"
#include "scratch.h"

namespace fastdl {

template <class T, bool centered>
class RowNormBackward {
  using A = Arithmetic<T>;
  using V = Vector<A>;

 public:
  RowNormBackward(const RowNorm& norm, const RowNormGradients& gradients)
      : norm_(norm),
        gradients_(gradients),
        weight_(norm.weight, norm.width, A(1)),
        ds_(gradients.input, norm.rows, norm.width, gradients.sum.values ? 4 : 3),
        mean_(static_cast<const A*>(gradients.mean)),
        rstd_(static_cast<const A*>(gradients.rstd)),
        input_ahead_(values_ahead<T>(norm.input, norm.width)),
        output_ahead_(values_ahead<T>(gradients.output, norm.width)),
        per_value_(1 / double(norm.width)) {}

  void run() const {
    // Gradients of parameters are summed chunk by chunk of rows, and the chunks added up in their order, so that the result does
    // not depend on the number of threads. In float a chunk's sums take at most 256 addends.
    const int64_t few = norm_.width < 4096 ? 32 : 8, wanted = (norm_.rows + 63) / 64;
    const int64_t chunk = (std::clamp<int64_t>(wanted, few, 256) + 3) / 4 * 4, chunks = (norm_.rows + chunk - 1) / chunk;
    const bool parameters = gradients_.weight || gradients_.bias;
    const Scratch<A> sums(parameters ? chunks * sums_stride() : 0);
    parallel(chunks, 2 * chunk * norm_.width, [&](int64_t i) {
      const int64_t begin = i * chunk, end = std::min(norm_.rows, begin + chunk);
      A* of_chunk = parameters ? sums.data() + i * sums_stride() : nullptr;
      if (parameters) std::fill(of_chunk, of_chunk + sums_stride(), A(0));
      const bool has_sum = gradients_.sum.values;
      if (parameters && has_sum) rows<true, true>(begin, end, of_chunk);
      else if (parameters) rows<true, false>(begin, end, of_chunk);
      else if (has_sum) rows<false, true>(begin, end, nullptr);
      else rows<false, false>(begin, end, nullptr);
    });
    if (parameters) merge(sums.data(), chunks);
  }

 private:
  // xhat = (s - center) scale + shift;  ds = scale g + (xhat by_normalized + constant)
  struct Map {
    A center, scale, shift, by_normalized, constant;
  };

  // Of a chunk: sums of grad_output xhat, then of grad_output, by column.
  int64_t sums_stride() const { return (centered ? 2 : 1) * norm_.width; }

  template <bool has_parameters, bool has_sum>
  void rows(int64_t begin, int64_t end, A* weight_sums) const {
    A* const bias_sums = weight_sums + norm_.width;
    const A* const weight = weight_;
    RowPosition position(begin, norm_.inner);
    for (int64_t row = begin; row < end; ++row, position.advance()) {
      const T *const s = position.template of<T>(norm_.input), *const g = position.template of<T>(gradients_.output);
      const T* const gs = has_sum ? position.template of<T>(gradients_.sum) : nullptr;
      T* const ds = ds_.row(row);
      const Map map = centered ? centered_map<has_sum>(row, s, g, gs) : plain_map<has_sum>(row, s, g, gs);
      const V center = broadcast(map.center), scale = broadcast(map.scale), shift = broadcast(map.shift);
      const V by_normalized = broadcast(map.by_normalized), constant = broadcast(map.constant);
      ds_.sweep_row(ds, [&](int64_t j, auto part) FASTDL_INLINE_LAMBDA {
        __builtin_prefetch(s + input_ahead_ + j);
        __builtin_prefetch(g + output_ahead_ + j);
        const V gradient = part.load(g + j), value = part.load(s + j);
        const V normalized = centered ? (value - center) * scale + shift : value * scale;
        if constexpr (has_parameters) {
          part.store(weight_sums + j, part.load(weight_sums + j) + gradient * normalized);
          if constexpr (centered) part.store(bias_sums + j, part.load(bias_sums + j) + gradient);
        }
        if (!gradients_.input) return;
        V result = gradient * part.load(weight + j) * scale + normalized * by_normalized;
        if constexpr (centered) result += constant;
        if constexpr (has_sum) result += part.load(gs + j);
        ds_.store(part, ds + j, result);
      });
    }
    RowOutput<T>::finish();
  }

  // The means over one row; what the second pass will add is fetched meanwhile. What the saved mean has lost of the true one is
  // found again, as the mean of s - center.
  template <bool has_sum>
  FASTDL_INLINE Map centered_map(int64_t row, const T* s, const T* g, const T* gs) const {
    const A* const weight = weight_;
    const V center = broadcast(mean_[row]);
    A sums[3];
    accumulate(norm_.width, sums, [&](int64_t i, auto part, V* to) FASTDL_INLINE_LAMBDA {
      if constexpr (has_sum) __builtin_prefetch(gs + i);
      const V d = part.clear_rest(part.load(s + i) - center), gw = part.load(g + i) * part.load(weight + i);
      to[0] += d;
      to[1] += gw;
      to[2] += gw * d;
    });
    const double rstd = rstd_[row], remainder = double(sums[0]) * per_value_, mean_gradient = double(sums[1]) * per_value_;
    const double mean_product = rstd * (double(sums[2]) * per_value_ - remainder * mean_gradient);
    return {mean_[row], A(rstd), A(-remainder * rstd), A(-rstd * mean_product), A(-rstd * mean_gradient)};
  }

  template <bool has_sum>
  FASTDL_INLINE Map plain_map(int64_t row, const T* s, const T* g, const T* gs) const {
    const A* const weight = weight_;
    A sums[1];
    accumulate(norm_.width, sums, [&](int64_t i, auto part, V* to) FASTDL_INLINE_LAMBDA {
      if constexpr (has_sum) __builtin_prefetch(gs + i);
      to[0] += part.load(g + i) * part.load(weight + i) * part.load(s + i);
    });
    const double rstd = rstd_[row];
    return {0, A(rstd), 0, A(-rstd * rstd * (double(sums[0]) * per_value_)), 0};
  }

  void merge(const A* sums, int64_t chunks) const {
    constexpr int64_t columns = 256;
    A* const results[2] = {static_cast<A*>(gradients_.weight), static_cast<A*>(gradients_.bias)};
    const int64_t width = norm_.width, blocks = (width + columns - 1) / columns;
    parallel((centered ? 2 : 1) * blocks, columns * chunks, [&](int64_t i) {
      A* const result = results[i / blocks];
      if (!result) return;
      const int64_t first = i % blocks * columns, n = std::min(columns, width - first);
      const A* from = sums + i / blocks * width + first;
      double total[columns + lanes<A>] = {};
      for (int64_t c = 0; c < chunks; ++c, from += sums_stride())
        sweep<A>(n, [&](int64_t j, auto part) { WideSum<A>::add_to(total + j, part.load(from + j)); });
      for (int64_t j = 0; j < n; ++j) result[first + j] = A(total[j]);
    });
  }

  const RowNorm& norm_;
  const RowNormGradients& gradients_;
  const RowParameter<A> weight_;
  const RowOutput<T> ds_;
  const A *const mean_, *const rstd_;
  const int64_t input_ahead_, output_ahead_;
  const double per_value_;
};

}  // namespace fastdl
