// The loops of spans.h, written once for every storage type and activation. Included by the files spans_<type>.cpp alone.
#pragma once

#include <type_traits>
#include <utility>

#include "spans.h"

namespace fastdl {

// Calls body with true or false as a compile-time constant: a test outside of the loop instead of in it.
template <class Body>
FASTDL_INLINE void decide(bool condition, Body&& body) {
  if (condition) body(std::true_type{});
  else body(std::false_type{});
}

template <class T, Activation activation>
struct SpansOf {
  using A = Arithmetic<T>;
  using Act = Activate<A, activation>;
  using V = Vector<A>;

  template <class Part, class HasResidual>
  static FASTDL_INLINE V affine(Part part, V x, const T* r, V center, V scale, V shift, HasResidual) {
    V u = (x - center) * scale + shift;
    if constexpr (HasResidual::value) u += part.load(r);
    return u;
  }

  static void forward_strips(const T* x, const T* r, T* y, StripSteps steps, int64_t n, int64_t strips, const Affine<A>* maps,
                             A parameter, int64_t ahead) {
    decide(r, [&](auto has_residual) {
      for (int64_t strip = 0; strip < strips; ++strip, x += steps.x, r += steps.r, y += steps.y) {
        const V center = broadcast(maps[strip].center), scale = broadcast(maps[strip].scale), shift = broadcast(maps[strip].shift);
        sweep<A>(n, [&](int64_t i, auto part) {
          __builtin_prefetch(x + i + ahead);
          part.store(y + i, Act::value(affine(part, part.load(x + i), r + i, center, scale, shift, has_residual), parameter));
        });
      }
    });
  }

  static void forward_rows(Rows<const T> x, Rows<const T> r, Rows<T> y, int64_t rows, int64_t columns, AffineColumns<A> map,
                           A parameter, int64_t ahead) {
    // Four rows at a time: the three coefficients of a column are loaded once for the four.
    decide(bool(r), [&](auto has_residual) {
      int64_t row = 0;
      auto block = [&](auto count) {
        sweep<A>(columns, [&](int64_t j, auto part) {
          const V center = part.load(map.center + j), scale = part.load(map.scale + j), shift = part.load(map.shift + j);
#pragma GCC unroll 4
          for (int64_t k = row; k < row + count.value; ++k) {
            __builtin_prefetch(x.first + k * x.stride + j + ahead);
            part.store(y.first + k * y.stride + j,
                       Act::value(affine(part, part.load(x.first + k * x.stride + j), r.first + k * r.stride + j, center, scale,
                                         shift, has_residual),
                                  parameter));
          }
        });
        row += count.value;
      };
      while (row + 4 <= rows) block(std::integral_constant<int, 4>{});
      while (row < rows) block(std::integral_constant<int, 1>{});
    });
  }

  static void reduce_strips(const T* x, const T* r, const T* g, A* keep, StripSteps steps, int64_t n, int64_t strips,
                            const Affine<A>* maps, A parameter, double* sums, int64_t ahead) {
    decide(r, [&](auto has_residual) {
      decide(keep, [&](auto keeps) {
        for (int64_t strip = 0; strip < strips; ++strip, x += steps.x, r += steps.r, g += steps.g, sums += 2) {
          const V center = broadcast(maps[strip].center), scale = broadcast(maps[strip].scale),
                  shift = broadcast(maps[strip].shift);
          WideSum<A> gradient_total, product_total;
          constexpr int64_t few = 8 * lanes<A>;
          for (int64_t start = 0; start < n; start += few) {
            V gradient_sum{}, product_sum{};
            sweep<A>(n - start < few ? n - start : few, [&](int64_t offset, auto part) {
              const int64_t i = start + offset;
              __builtin_prefetch(x + i + ahead);
              __builtin_prefetch(g + i + ahead);
              V value = part.load(x + i);
              V gu = Act::gradient(part.load(g + i), affine(part, value, r + i, center, scale, shift, has_residual), parameter);
              if constexpr (keeps.value) part.store(keep + i, gu);
              gu = part.clear_rest(gu);
              gradient_sum += gu;
              product_sum += gu * part.clear_rest(value - center);
            });
            gradient_total.add(gradient_sum);
            product_total.add(product_sum);
          }
          sums[0] += gradient_total.total();
          sums[1] += product_total.total();
          if constexpr (keeps.value) keep += n;
        }
      });
    });
  }

  static void reduce_rows(Rows<const T> x, Rows<const T> r, Rows<const T> g, Rows<A> keep, int64_t rows, int64_t columns,
                          AffineColumns<A> map, A parameter, double* gradient_sums, double* product_sums, int64_t ahead) {
    decide(bool(r), [&](auto has_residual) {
      decide(bool(keep), [&](auto keeps) {
        int64_t row = 0;
        auto block = [&](auto count) {
          sweep<A>(columns, [&](int64_t j, auto part) {
            const V center = part.load(map.center + j), scale = part.load(map.scale + j), shift = part.load(map.shift + j);
            V gradient_sum{}, product_sum{};
#pragma GCC unroll 4
            for (int64_t k = row; k < row + count.value; ++k) {
              __builtin_prefetch(x.first + k * x.stride + j + ahead);
              __builtin_prefetch(g.first + k * g.stride + j + ahead);
              V value = part.load(x.first + k * x.stride + j);
              V u = affine(part, value, r.first + k * r.stride + j, center, scale, shift, has_residual);
              V gu = Act::gradient(part.load(g.first + k * g.stride + j), u, parameter);
              if constexpr (keeps.value) part.store(keep.first + k * keep.stride + j, gu);
              gradient_sum += gu;
              product_sum += gu * (value - center);
            }
            WideSum<A>::add_to(gradient_sums + j, part.clear_rest(gradient_sum));
            WideSum<A>::add_to(product_sums + j, part.clear_rest(product_sum));
          });
          row += count.value;
        };
        while (row + 4 <= rows) block(std::integral_constant<int, 4>{});
        while (row < rows) block(std::integral_constant<int, 1>{});
      });
    });
  }

  // The backward map of one vector; stores what is asked for.
  template <class Part, class G, class HasResidual>
  static FASTDL_INLINE void backward(Part part, const T* x, const T* r, const G* g, T* gx, T* gr, V center, V scale, V shift,
                                     V by_gradient, V by_input, V constant, A parameter, HasResidual has_residual) {
    V value = part.load(x);
    V gu = Act::gradient(part.load(g), affine(part, value, r, center, scale, shift, has_residual), parameter);
    if (gr) part.store(gr, gu);
    // Where the statistics are constants by_input is 0, and an infinite input must not turn 0 into NaN.
    if (gx) part.store(gx, gu * by_gradient + ((by_input == A(0) ? V{} : (value - center) * by_input) + constant));
  }

  // G is what the gradient is stored in: T, or A where it was kept between the passes.
  template <class G>
  static void backward_strips(const T* x, const T* r, const G* g, T* gx, T* gr, StripSteps steps, int64_t n, int64_t strips,
                              const Affine<A>* maps, const Slope<A>* slopes, A parameter) {
    auto run = [&](auto has_residual, T* gx, T* gr) FASTDL_INLINE_LAMBDA {
      for (int64_t strip = 0; strip < strips; ++strip) {
        const Affine<A> map = maps[strip];
        const Slope<A> slope = slopes[strip];
        const V center = broadcast(map.center), scale = broadcast(map.scale), shift = broadcast(map.shift);
        const V by_gradient = broadcast(slope.by_gradient), by_input = broadcast(slope.by_input),
                constant = broadcast(slope.constant);
        sweep<A>(n, [&](int64_t i, auto part) {
          backward(part, x + i, r + i, g + i, gx ? gx + i : nullptr, gr ? gr + i : nullptr, center, scale, shift, by_gradient,
                   by_input, constant, parameter, has_residual);
        });
        x += steps.x, r += steps.r, g += steps.g;
        if (gx) gx += steps.y;
        if (gr) gr += steps.y;
      }
    };
    if (!r && !gr) run(std::false_type{}, gx, nullptr);
    else if (r) run(std::true_type{}, gx, gr);
    else run(std::false_type{}, gx, gr);
  }

  template <class G>
  static void backward_rows(Rows<const T> x, Rows<const T> r, Rows<const G> g, Rows<T> gx, Rows<T> gr, int64_t rows,
                            int64_t columns, AffineColumns<A> map, SlopeColumns<A> slope, A parameter) {
    int64_t row = 0;
    auto block = [&](auto count, auto has_residual, T* gx_first, T* gr_first) FASTDL_INLINE_LAMBDA {
      sweep<A>(columns, [&](int64_t j, auto part) {
        const V center = part.load(map.center + j), scale = part.load(map.scale + j), shift = part.load(map.shift + j);
        const V by_gradient = part.load(slope.by_gradient + j), by_input = part.load(slope.by_input + j),
                constant = part.load(slope.constant + j);
#pragma GCC unroll 4
        for (int64_t k = row; k < row + count.value; ++k) {
          backward(part, x.first + k * x.stride + j, r.first + k * r.stride + j, g.first + k * g.stride + j,
                   gx_first ? gx_first + k * gx.stride + j : nullptr, gr_first ? gr_first + k * gr.stride + j : nullptr, center,
                   scale, shift, by_gradient, by_input, constant, parameter, has_residual);
        }
      });
      row += count.value;
    };
    auto all = [&](auto has_residual, T* gx_first, T* gr_first) FASTDL_INLINE_LAMBDA {
      while (row + 4 <= rows) block(std::integral_constant<int, 4>{}, has_residual, gx_first, gr_first);
      while (row < rows) block(std::integral_constant<int, 1>{}, has_residual, gx_first, gr_first);
    };
    if (!r && !gr) all(std::false_type{}, gx.first, nullptr);
    else if (r) all(std::true_type{}, gx.first, gr.first);
    else all(std::false_type{}, gx.first, gr.first);
  }

  static constexpr Spans<T> table = {forward_strips, forward_rows,       reduce_strips,
                                     reduce_rows,    backward_strips<T>, backward_rows<T>};
};

template <class T, int... index>
const Spans<T>& pick_spans(Activation activation, std::integer_sequence<int, index...>) {
  static constexpr const Spans<T>* tables[] = {&SpansOf<T, Activation(index)>::table...};
  return *tables[int(activation)];
}

// What a file spans_<type>.cpp defines.
#define FASTDL_SPANS(T)                                                                    \
  template <>                                                                              \
  const Spans<T>& spans<T>(Activation activation) {                                        \
    return pick_spans<T>(activation, std::make_integer_sequence<int, activation_count>{}); \
  }                                                                                        \
  template <>                                                                              \
  const KeptSpans<T>& kept_spans<T>() {                                                    \
    using Plain = SpansOf<T, Activation::identity>;                                        \
    static constexpr KeptSpans<T> table = {Plain::template backward_strips<Arithmetic<T>>, \
                                           Plain::template backward_rows<Arithmetic<T>>};  \
    return table;                                                                          \
  }

}  // namespace fastdl
