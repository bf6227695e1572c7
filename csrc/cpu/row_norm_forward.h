// The forward of layer_norm (`centered`) and rms_norm. A row is gone through three times, by rms_norm twice, but comes from memory
// once: after that it is in the first-level cache, so that x + r is rather computed again than stored and loaded in float.
#pragma once

#include "row_norm_rows.h"

namespace fastdl {

template <class T, bool centered>
class RowNormForward {
  using A = Arithmetic<T>;
  using V = Vector<A>;

 public:
  RowNormForward(const RowNorm& norm, const RowNormResults& results)
      : norm_(norm),
        weight_(norm.weight, norm.width, A(1)),
        bias_(norm.bias, centered ? norm.width : 0, A(0)),
        y_(results.output, norm.rows, norm.width, results.sum ? 4 : 2),
        sum_(results.sum, norm.rows, norm.width, 4),
        mean_(static_cast<A*>(results.mean)),
        rstd_(static_cast<A*>(results.rstd)),
        input_ahead_(values_ahead<T>(norm.input, norm.width)),
        residual_ahead_(values_ahead<T>(norm.residual, norm.width)),
        fetches_(norm.width * int64_t(sizeof(T)) <= longest_fetched),
        per_value_(1 / double(norm.width)) {}

  void run() const {
    const int64_t unit = std::max<int64_t>(1, 8192 / norm_.width);  // rows
    parallel((norm_.rows + unit - 1) / unit, unit * norm_.width, [&](int64_t i) {
      const int64_t begin = i * unit, end = std::min(norm_.rows, begin + unit);
      if (norm_.residual.values) rows<true>(begin, end);
      else rows<false>(begin, end);
    });
  }

 private:
  // xhat = (s - center) scale + shift. The mean is split into what A holds and a remainder, which goes into the shift: at a mean of
  // 1e4, float alone would be off by 5e-4.
  struct Map {
    A center, scale, shift;
  };

  template <bool has_residual>
  void rows(int64_t begin, int64_t end) const {
    // A sum in half precision is widened, added and rounded once, and kept in the cache.
    constexpr bool keeps = has_residual && sizeof(T) == 2;
    A* const kept = keeps ? kept_buffer<A>(norm_.width) : nullptr;
    const A *weight = weight_, *bias = bias_;
    RowPosition position(begin, norm_.inner);
    for (int64_t row = begin; row < end; ++row, position.advance()) {
      const T* x = position.template of<T>(norm_.input);
      const T* r = has_residual ? position.template of<T>(norm_.residual) : nullptr;
      T *y = y_.row(row), *sum = sum_.row(row);
      auto added = [&](int64_t i, auto part) FASTDL_INLINE_LAMBDA {
        if constexpr (has_residual) return rounded<T>(part.load(x + i) + part.load(r + i));
        else return part.load(x + i);
      };
      // What is normalised, for the first pass and for those after it.
      auto first_input = [&](int64_t i, auto part) FASTDL_INLINE_LAMBDA {
        const V s = added(i, part);
        if constexpr (keeps) part.store(kept + i, s);
        return s;
      };
      auto input = [&](int64_t i, auto part) FASTDL_INLINE_LAMBDA {
        if constexpr (keeps) return part.load(kept + i);
        else return added(i, part);
      };
      auto fetch = [&](int64_t i) FASTDL_INLINE_LAMBDA {
        if (!fetches_) return;
        y_.fetch(y + i);
        __builtin_prefetch(x + input_ahead_ + i);
        if constexpr (has_residual) {
          sum_.fetch(sum + i);
          __builtin_prefetch(r + residual_ahead_ + i);
        }
      };
      const Map map = centered ? moments(row, first_input, input, fetch) : root_mean_square(row, first_input, fetch);
      const V center = broadcast(map.center), scale = broadcast(map.scale), shift = broadcast(map.shift);
      y_.sweep_row(y, [&](int64_t i, auto part) FASTDL_INLINE_LAMBDA {
        const V s = input(i, part), w = part.load(weight + i);
        if constexpr (has_residual) sum_.store(part, sum + i, s);
        if constexpr (centered) y_.store(part, y + i, ((s - center) * scale + shift) * w + part.load(bias + i));
        else y_.store(part, y + i, s * scale * w);
      });
    }
    RowOutput<T>::finish();
  }

  // What backward needs of one row. While it is in the cache, `fetch` brings what is needed next.
  template <class FirstInput, class Input, class Fetch>
  FASTDL_INLINE Map moments(int64_t row, const FirstInput& first_input, const Input& input, const Fetch& fetch) const {
    // Summed from the first value on, which makes the mean of a row of equal values exact, and their variance 0.
    const A first = first_input(0, First<A>{1})[0];
    const V from = broadcast(first);
    A distance[1];
    accumulate(norm_.width, distance,
               [&](int64_t i, auto part, V* to) FASTDL_INLINE_LAMBDA { to[0] += part.clear_rest(first_input(i, part) - from); });
    const A center = A(double(first) + double(distance[0]) * per_value_);
    const V middle = broadcast(center);
    A sums[2];  // of s - center, and of its square
    accumulate(norm_.width, sums, [&](int64_t i, auto part, V* to) FASTDL_INLINE_LAMBDA {
      fetch(i);
      const V d = part.clear_rest(input(i, part) - middle);
      to[0] += d;
      to[1] += d * d;
    });
    const double remainder = double(sums[0]) * per_value_, variance = double(sums[1]) * per_value_ - remainder * remainder;
    const double rstd = 1 / std::sqrt((variance < 0 ? 0 : variance) + norm_.eps);
    mean_[row] = A(double(center) + remainder);
    rstd_[row] = A(rstd);
    return {center, A(rstd), A(-remainder * rstd)};
  }

  template <class FirstInput, class Fetch>
  FASTDL_INLINE Map root_mean_square(int64_t row, const FirstInput& first_input, const Fetch& fetch) const {
    A squares[1];
    accumulate(norm_.width, squares, [&](int64_t i, auto part, V* to) FASTDL_INLINE_LAMBDA {
      fetch(i);
      const V s = first_input(i, part);
      to[0] += s * s;
    });
    const double rstd = 1 / std::sqrt(double(squares[0]) * per_value_ + norm_.eps);
    rstd_[row] = A(rstd);
    return {0, A(rstd), 0};
  }

  const RowNorm& norm_;
  const RowParameter<A> weight_, bias_;
  const RowOutput<T> y_, sum_;
  A *const mean_, *const rstd_;
  const int64_t input_ahead_, residual_ahead_;
  const bool fetches_;
  const double per_value_;
};

}  // namespace fastdl
