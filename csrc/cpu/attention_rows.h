// What happens to a row of scores: which keys it sees, scale, cap and mask, softmax, and the softmax's gradient.
#pragma once

#include <algorithm>
#include <limits>

#include "attention.h"
#include "elementary.h"
#include "matrix_pack.h"

namespace fastdl {

template <class A>
inline constexpr A infinity = std::numeric_limits<A>::infinity();

struct Range {
  int64_t begin = 0, end = 0;
  bool empty() const { return begin >= end; }
  // As seen from `first`, and no further than `count` from there.
  Range within(int64_t first, int64_t count) const {
    return {std::clamp<int64_t>(begin - first, 0, count), std::clamp<int64_t>(end - first, 0, count)};
  }
};

// The keys that the queries from row to last see; each end of the range rises with the row.
inline Range visible_keys(const Attention& call, const Sequence& sequence, int64_t row, int64_t last) {
  Range range{0, sequence.keys};
  if (call.window_left >= 0) range.begin = std::clamp<int64_t>(row + sequence.offset - call.window_left, 0, sequence.keys);
  if (call.window_right >= 0) range.end = std::clamp<int64_t>(last + sequence.offset + call.window_right + 1, 0, sequence.keys);
  return range;
}
inline Range visible_keys(const Attention& call, const Sequence& sequence, int64_t row) {
  return visible_keys(call, sequence, row, row);
}

template <class T>
inline void copy_mask_row(const T* from, int64_t stride, int64_t n, Arithmetic<T>* out) {
  if (stride == 1) {
    widen(from, out, n);
    return;
  }
  for (int64_t i = 0; i < n; ++i) {
    if constexpr (std::is_floating_point_v<T>) out[i] = from[i * stride];
    else out[i] = widen(from[i * stride]);
  }
}

// Rows of the mask in the type of the arithmetic; a boolean one becomes 0 and -inf. A row that came last is not read again: a mask
// of keys alone has one for all queries.
template <class T, class A = Arithmetic<T>>
class MaskRow {
 public:
  explicit MaskRow(const Attention& call) : call(call) {}

  void read(int64_t sample, int64_t head, int64_t row, int64_t first, int64_t count, A* out) {
    const Operand4& mask = call.mask;
    const int64_t at = sample * mask.sample + head * mask.head + row * mask.row + first * mask.column;
    if (at == last_at && count == last_count && out == last_out) return;
    last_at = at, last_count = count, last_out = out;
    if (call.mask_type == MaskType::boolean) {
      const uint8_t* from = static_cast<const uint8_t*>(mask.data) + at;
      const int64_t stride = mask.column;
      if (stride == 1)
        for (int64_t i = 0; i < count; ++i) out[i] = from[i] ? A(0) : -infinity<A>;
      else
        for (int64_t i = 0; i < count; ++i) out[i] = from[i * stride] ? A(0) : -infinity<A>;
    } else if constexpr (std::is_same_v<A, double>) {
      copy_mask_row(static_cast<const double*>(mask.data) + at, mask.column, count, out);
    } else if (call.mask_type == MaskType::float32) {
      copy_mask_row(static_cast<const float*>(mask.data) + at, mask.column, count, out);
    } else {
      copy_mask_row(static_cast<const T*>(mask.data) + at, mask.column, count, out);
    }
  }

 private:
  const Attention& call;
  int64_t last_at = -1, last_count = -1;
  A* last_out = nullptr;
};

// How products q.k become scores. Where nothing but a positive scale happens to them, the scale is left to the exponential.
template <class A>
struct Shaping {
  A scale, softcap;
  bool boolean, masked, plain;

  explicit Shaping(const Attention& call)
      : scale(A(call.scale)),
        softcap(A(call.softcap)),
        boolean(call.mask_type == MaskType::boolean),
        masked(call.mask_type != MaskType::none),
        plain(!(softcap > 0) && !masked && scale > A(1e-30)) {}

  // What a number in a shaped row is worth.
  A unit() const { return plain ? scale : A(1); }

  // In place, n a multiple of a vector's width; `slope`, if not null, becomes the derivative of the cap.
  void shape(A* s, const A* mask, A* slope, int64_t n) const {
    using V = Vector<A>;
    const A to_cap = softcap > 0 ? scale / softcap : A(0);
    for (int64_t i = 0; i < n; i += lanes<A>) {
      V score = load_vector(s + i);
      if (softcap > 0) {
        const V t = hyperbolic_tangent<A>(score * to_cap);
        if (slope) store_vector<A>(slope + i, A(1) - t * t);
        score = t * softcap;
      } else {
        score = score * scale;
      }
      if (boolean) score = load_vector(mask + i) < A(0) ? broadcast(-infinity<A>) : score;
      else if (masked) score = score + load_vector(mask + i);
      store_vector<A>(s + i, score);
    }
  }
};

// Makes what is outside of [begin, end) of a row of n invisible.
template <class A>
FASTDL_INLINE void hide_rest(A* s, int64_t first, Range seen, int64_t last) {
  for (int64_t i = first; i < seen.begin; ++i) s[i] = -infinity<A>;
  for (int64_t i = seen.end; i < last; ++i) s[i] = -infinity<A>;
}

// A row's maximum, in a shaped row's unit, and the sum of its exponentials beside that maximum.
template <class A>
struct RowSum {
  A largest = -infinity<A>, sum = 0;
};

// One block of a row: the weights e^(unit (s - largest)), as units, dropped if `factors` is not null. Returns the factor by which
// what was summed up before is worth less. n is a multiple of a vector's width, and so is the alignment of the row.
template <class P, class A = typename P::Sum>
FASTDL_INLINE A softmax_row(const A* s, int64_t n, const ScaledExponential<A>& exponential, const A* factors, RowSum<A>& state,
                            typename P::Unit* weights) {
  using V = Vector<A>;
  constexpr int width = lanes<A>;
  V largest = broadcast(state.largest);
  for (int64_t i = 0; i < n; i += width) largest = larger<A>(load_vector(s + i), largest);
  const A bound = largest_lane<A>(largest);
  // Where nothing is seen, any finite maximum gives weights of zero.
  const A reference = bound == -infinity<A> ? A(0) : bound;
  V sum{};
  if (factors) {
    for (int64_t i = 0; i < n; i += width) {
      const V weight = exponential(load_vector(s + i) - reference);
      sum += weight;
      store_units<P>(weights, i, weight * load_vector(factors + i));
    }
  } else {
    for (int64_t i = 0; i < n; i += width) {
      const V weight = exponential(load_vector(s + i) - reference);
      sum += weight;
      store_units<P>(weights, i, weight);
    }
  }
  const A before = state.largest == bound          ? A(1)
                   : state.largest == -infinity<A> ? A(0)
                                                   : A(std::exp2((state.largest - reference) * exponential.high));
  state.largest = bound;
  state.sum = state.sum * before + sum_lanes<A>(sum);
  return before;
}

// What the gradient of a row needs beside the row.
template <class A>
struct RowGradient {
  A unit, log_sum;
  A delta;           // sum(grad_output * output); not read where the row is whole
  A grad_log_sum;    // 0 where there is none
  const A* factors;  // of dropout; may be null
  const A* slope;    // of the cap; may be null
};

// In place: scores s become the weights P (dropped, as the gradient of the values wants them), and the products grad_output . v
// become P (dropped products - delta + grad_log_sum), times the cap's derivative.
//
// Where the row is whole, nothing of it being in another block, its sums are taken from what is at hand: weights that add up to
// exactly 1, and delta = sum(P products), which unlike the output is not rounded to half precision.
template <bool whole, class A>
FASTDL_INLINE void gradient_row(A* s, A* products, int64_t n, const RowGradient<A>& row) {
  using V = Vector<A>;
  const ScaledExponential<A> exponential(1);
  const A log_sum = row.log_sum == -infinity<A> ? infinity<A> : row.log_sum;
  A normalizer = 1, shift = row.delta - row.grad_log_sum;
  if constexpr (whole) {
    V sum{}, products_sum{};
    for (int64_t i = 0; i < n; i += lanes<A>) {
      const V weight = exponential(load_vector(s + i) * row.unit - log_sum);
      V product = load_vector(products + i);
      if (row.factors) {
        product = product * load_vector(row.factors + i);
        store_vector<A>(products + i, product);
      }
      store_vector<A>(s + i, weight);
      sum += weight;
      products_sum += weight * product;
    }
    const A total = sum_lanes<A>(sum);
    normalizer = total == 0 ? A(0) : A(1) / total;
    shift = sum_lanes<A>(products_sum) * normalizer - row.grad_log_sum;
  }
  for (int64_t i = 0; i < n; i += lanes<A>) {
    V weight, product = load_vector(products + i);
    if constexpr (whole) weight = load_vector(s + i) * normalizer;
    else weight = exponential(load_vector(s + i) * row.unit - log_sum);
    V dropped = weight;
    if (row.factors) {
      const V kept = load_vector(row.factors + i);
      if constexpr (!whole) product = product * kept;
      dropped = weight * kept;
    }
    V gradient = weight * (product - shift);
    if (row.slope) gradient = gradient * load_vector(row.slope + i);
    store_vector<A>(s + i, dropped);
    store_vector<A>(products + i, gradient);
  }
}

// The dot product of two rows, in the arithmetic type.
template <class T>
inline Arithmetic<T> dot_rows(const T* x, const T* y, int64_t n) {
  using A = Arithmetic<T>;
  Vector<A> sum{};
  sweep<A>(n, [&](int64_t i, auto part) FASTDL_INLINE_LAMBDA { sum += part.load(x + i) * part.load(y + i); });
  return sum_lanes<A>(sum);
}

}  // namespace fastdl
