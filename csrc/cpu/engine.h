// From tensors to the span loops. Where the activation comes last these read and write the tensors themselves.
//
// With the activation first (order act_norm) the tensor that is normalised is z = act(x) + residual. It is computed a tile at a
// time, in the arithmetic type and in the first-level cache, wherever it is needed, and never written to memory.
#pragma once

#include "spans.h"

namespace fastdl {

template <class T>
class Engine {
 public:
  using A = Arithmetic<T>;

  Engine(Activation activation, double parameter, bool activation_first)
      : last_(activation_first ? nullptr : &spans<T>(activation)),
        first_(activation_first ? &spans<A>(activation) : nullptr),
        parameter_(A(parameter)) {}

  // f(z, n) for consecutive tiles of the values whose moments are taken: of T, or of A where the activation comes first.
  template <class F>
  void visit(const T* x, const T* r, int64_t n, F&& f) const {
    if (last_) {
      f(x, n);
      return;
    }
    Tile z;
    tiles(n, [&](int64_t i, int64_t m) { f(activated(x + i, r ? r + i : nullptr, m, z), m); });
  }

  void forward(const T* x, const T* r, T* y, StripSteps steps, int64_t n, int64_t strips, const Affine<A>* maps,
               int64_t ahead) const {
    if (last_) {
      last_->forward_strips(x, r, y, steps, n, strips, maps, parameter_, ahead);
      return;
    }
    Tile z, out;
    each_strip(n, strips, [&](int64_t strip, int64_t i, int64_t m) {
      const A* source = activated(x + strip * steps.x + i, r ? r + strip * steps.r + i : nullptr, m, z);
      plain().forward_strips(source, nullptr, out.values, {}, m, 1, maps + strip, 0, 0);
      narrow(out.values, y + strip * steps.y + i, m);
    });
  }

  // Of each strip: sums[0] += sum gu, sums[1] += sum gu (z - center). Where `keep` is not null, keep = gu, for backward_kept.
  void reduce(const T* x, const T* r, const T* g, A* keep, StripSteps steps, int64_t n, int64_t strips, const Affine<A>* maps,
              double* sums, int64_t ahead) const {
    if (last_) {
      last_->reduce_strips(x, r, g, keep, steps, n, strips, maps, parameter_, sums, ahead);
      return;
    }
    Tile z, gradient;
    each_strip(n, strips, [&](int64_t strip, int64_t i, int64_t m) {
      const A* source = activated(x + strip * steps.x + i, r ? r + strip * steps.r + i : nullptr, m, z);
      plain().reduce_strips(source, nullptr, widened(g + strip * steps.g + i, m, gradient), keep ? keep + strip * n + i : nullptr,
                            {}, m, 1, maps + strip, 0, sums + 2 * strip, 0);
    });
  }

  // gx and gr may be null.
  void backward(const T* x, const T* r, const T* g, T* gx, T* gr, StripSteps steps, int64_t n, int64_t strips,
                const Affine<A>* maps, const Slope<A>* slopes) const {
    if (last_) {
      last_->backward_strips(x, r, g, gx, gr, steps, n, strips, maps, slopes, parameter_);
      return;
    }
    Tile z, gradient, gz, input;
    each_strip(n, strips, [&](int64_t strip, int64_t i, int64_t m) {
      const T* from = x + strip * steps.x + i;
      const int64_t to = strip * steps.y + i;
      const A* source = activated(from, r ? r + strip * steps.r + i : nullptr, m, z);
      plain().backward_strips(source, nullptr, widened(g + strip * steps.g + i, m, gradient), gz.values, nullptr, {}, m, 1,
                              maps + strip, slopes + strip, 0);
      through_activation(from, gz.values, gx ? gx + to : nullptr, gr ? gr + to : nullptr, m, input);
    });
  }

  // The same from gu as reduce kept it. Only where the activation comes last.
  void backward_kept(const T* x, const A* gu, T* gx, T* gr, StripSteps steps, int64_t n, int64_t strips, const Affine<A>* maps,
                     const Slope<A>* slopes) const {
    steps.g = n;
    kept_spans<T>().backward_strips(x, nullptr, gu, gx, gr, steps, n, strips, maps, slopes, 0);
  }

  template <class F>
  void visit_rows(Rows<const T> x, Rows<const T> r, int64_t rows, int64_t columns, F&& f) const {
    if (last_) {
      f(x, 0, rows, columns);
      return;
    }
    activated_rows(x, r, rows, columns,
                   [&](Rows<const A> z, int64_t, int64_t column, int64_t height, int64_t width) { f(z, column, height, width); });
  }

  void forward_rows(Rows<const T> x, Rows<const T> r, Rows<T> y, int64_t rows, int64_t columns, AffineColumns<A> map,
                    int64_t ahead) const {
    if (last_) {
      last_->forward_rows(x, r, y, rows, columns, map, parameter_, ahead);
      return;
    }
    Tile out;
    activated_rows(x, r, rows, columns, [&](Rows<const A> z, int64_t row, int64_t column, int64_t height, int64_t width) {
      plain().forward_rows(z, {nullptr, 0}, {out.values, width}, height, width, shifted(map, column), 0, 0);
      for (int64_t k = 0; k < height; ++k) narrow(out.values + k * width, at(y, row + k, column), width);
    });
  }

  void reduce_rows(Rows<const T> x, Rows<const T> r, Rows<const T> g, Rows<A> keep, int64_t rows, int64_t columns,
                   AffineColumns<A> map, double* gradient_sums, double* product_sums, int64_t ahead) const {
    if (last_) {
      last_->reduce_rows(x, r, g, keep, rows, columns, map, parameter_, gradient_sums, product_sums, ahead);
      return;
    }
    Tile gradient;
    activated_rows(x, r, rows, columns, [&](Rows<const A> z, int64_t row, int64_t column, int64_t height, int64_t width) {
      const Rows<A> kept = keep ? Rows<A>{at(keep, row, column), keep.stride} : keep;
      plain().reduce_rows(z, {nullptr, 0}, widened_rows(g, row, column, height, width, gradient), kept, height, width,
                          shifted(map, column), 0, gradient_sums + column, product_sums + column, 0);
    });
  }

  void backward_rows(Rows<const T> x, Rows<const T> r, Rows<const T> g, Rows<T> gx, Rows<T> gr, int64_t rows, int64_t columns,
                     AffineColumns<A> map, SlopeColumns<A> slope) const {
    if (last_) {
      last_->backward_rows(x, r, g, gx, gr, rows, columns, map, slope, parameter_);
      return;
    }
    Tile gradient, gz, input;
    activated_rows(x, r, rows, columns, [&](Rows<const A> z, int64_t row, int64_t column, int64_t height, int64_t width) {
      plain().backward_rows(z, {nullptr, 0}, widened_rows(g, row, column, height, width, gradient), {gz.values, width},
                            {nullptr, 0}, height, width, shifted(map, column), shifted(slope, column), 0);
      for (int64_t k = row; k < row + height; ++k)
        through_activation(at(x, k, column), gz.values + (k - row) * width, gx ? at(gx, k, column) : nullptr,
                           gr ? at(gr, k, column) : nullptr, width, input);
    });
  }

  void backward_rows_kept(Rows<const T> x, Rows<const A> gu, Rows<T> gx, Rows<T> gr, int64_t rows, int64_t columns,
                          AffineColumns<A> map, SlopeColumns<A> slope) const {
    kept_spans<T>().backward_rows(x, {nullptr, 0}, gu, gx, gr, rows, columns, map, slope, 0);
  }

 private:
  static constexpr int64_t tile = 1024;
  struct Tile {
    A values[tile];
  };

  static const Spans<A>& plain() { return spans<A>(Activation::identity); }
  static int64_t min(int64_t a, int64_t b) { return a < b ? a : b; }
  static AffineColumns<A> shifted(AffineColumns<A> map, int64_t by) { return {map.center + by, map.scale + by, map.shift + by}; }
  static SlopeColumns<A> shifted(SlopeColumns<A> slope, int64_t by) {
    return {slope.by_gradient + by, slope.by_input + by, slope.constant + by};
  }
  template <class P>
  static P* at(Rows<P> rows, int64_t row, int64_t column) {
    return rows.first + row * rows.stride + column;
  }

  template <class F>
  static void tiles(int64_t n, F&& f) {
    for (int64_t i = 0; i < n; i += tile) f(i, min(n - i, tile));
  }

  template <class F>
  static void each_strip(int64_t n, int64_t strips, F&& f) {
    for (int64_t strip = 0; strip < strips; ++strip) tiles(n, [&](int64_t i, int64_t m) { f(strip, i, m); });
  }

  static const A* widened(const T* p, int64_t n, Tile& buffer) {
    if constexpr (std::is_same_v<T, A>) {
      return p;
    } else {
      widen(p, buffer.values, n);
      return buffer.values;
    }
  }
  static Rows<const A> widened_rows(Rows<const T> p, int64_t row, int64_t column, int64_t height, int64_t width, Tile& buffer) {
    if constexpr (std::is_same_v<T, A>) {
      return {at(p, row, column), p.stride};
    } else {
      for (int64_t k = 0; k < height; ++k) widen(at(p, row + k, column), buffer.values + k * width, width);
      return {buffer.values, width};
    }
  }

  // act(x) + r
  const A* activated(const T* x, const T* r, int64_t n, Tile& z) const {
    activate(x, r, n, z.values);
    return z.values;
  }
  void activate(const T* x, const T* r, int64_t n, A* z) const {
    Tile buffer;
    const Affine<A> unchanged = {0, 1, 0};
    first_->forward_strips(widened(x, n, buffer), nullptr, z, {}, n, 1, &unchanged, parameter_, 0);
    if (!r) return;
    const A* residual = widened(r, n, buffer);
    for (int64_t i = 0; i < n; ++i) z[i] += residual[i];
  }

  // gr = gz, the gradient of z; gx = gz act'(x).
  void through_activation(const T* x, const A* gz, T* gx, T* gr, int64_t n, Tile& buffer) const {
    if (gr) narrow(gz, gr, n);
    if (!gx) return;
    Tile out;
    const Affine<A> unchanged = {0, 1, 0};
    const Slope<A> gradient_alone = {1, 0, 0};
    first_->backward_strips(widened(x, n, buffer), nullptr, gz, out.values, nullptr, {}, n, 1, &unchanged, &gradient_alone,
                            parameter_);
    narrow(out.values, gx, n);
  }

  // f(act(x) + r, row, column, rows, columns) over tiles that fit a Tile.
  template <class F>
  void activated_rows(Rows<const T> x, Rows<const T> r, int64_t rows, int64_t columns, F&& f) const {
    Tile z;
    const int64_t most = min(columns, tile), height = tile / most;
    for (int64_t row = 0; row < rows; row += height) {
      for (int64_t column = 0; column < columns; column += most) {
        const int64_t width = min(most, columns - column), here = min(height, rows - row);
        for (int64_t k = 0; k < here; ++k)
          activate(at(x, row + k, column), r ? at(r, row + k, column) : nullptr, width, z.values + k * width);
        f(Rows<const A>{z.values, width}, row, column, here, width);
      }
    }
  }

  const Spans<T>* last_;   // the activation after the affine map; null where it comes first
  const Spans<A>* first_;  // the activation before the norm; null where it comes last
  A parameter_;
};

}  // namespace fastdl
