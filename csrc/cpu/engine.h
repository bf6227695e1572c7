// From tensors to spans: brings a strip or rows of any dtype to the arithmetic type, a tile at a time in the first-level cache,
// runs the span loops there, and writes the result back. float and double go straight through.
//
// With the activation first (order act_norm) the tensor that is normalised is z = act(x) + residual. It is computed a tile at a
// time wherever it is needed and never written to memory.
#pragma once

#include "spans.h"
#include "storage.h"

namespace fastdl {

template <class T>
class Engine {
 public:
  using A = Arithmetic<T>;

  Engine(Activation activation, double parameter, bool activation_first)
      : after_(&spans<A>(activation_first ? Activation::identity : activation)),
        before_(activation_first ? &spans<A>(activation) : nullptr),
        parameter_(A(parameter)) {}

  // f(z, n) for consecutive tiles of the values whose moments are taken.
  template <class F>
  void visit(const T* x, const T* r, int64_t n, F&& f) const {
    if (straight()) {
      f(as_arithmetic(x), n);
      return;
    }
    A z[tile], spare[tile];
    for (int64_t i = 0; i < n; i += tile) {
      const int64_t m = min(n - i, tile);
      f(input(x + i, r ? r + i : nullptr, m, z, spare), m);
    }
  }

  void forward(const T* x, const T* r, T* y, int64_t n, Affine<A> map, int64_t ahead) const {
    if (straight()) {
      after_->forward_strip(as_arithmetic(x), as_arithmetic(r), as_arithmetic(y), n, map, parameter_, ahead);
      return;
    }
    A z[tile], spare[tile], residual[tile], out[tile];
    for (int64_t i = 0; i < n; i += tile) {
      const int64_t m = min(n - i, tile);
      const A* source = input(x + i, r ? r + i : nullptr, m, z, spare);
      after_->forward_strip(source, late_residual(r, i, m, residual), out, m, map, parameter_, 0);
      put(out, y + i, m);
    }
  }

  // sums[0] += sum gu, sums[1] += sum gu (z - center). Where `keep` is not null, keep = gu, for backward_kept.
  void reduce(const T* x, const T* r, const T* g, A* keep, int64_t n, Affine<A> map, double* sums, int64_t ahead) const {
    auto run = [&](const A* x, const A* r, const A* g, A* keep, int64_t m) {
      after_->reduce_strip(x, r, g, keep, m, map, parameter_, sums, straight() ? ahead : 0);
    };
    if (straight()) {
      run(as_arithmetic(x), as_arithmetic(r), as_arithmetic(g), keep, n);
      return;
    }
    A z[tile], spare[tile], residual[tile], gradient[tile];
    for (int64_t i = 0; i < n; i += tile) {
      const int64_t m = min(n - i, tile);
      const A* source = input(x + i, r ? r + i : nullptr, m, z, spare);
      run(source, late_residual(r, i, m, residual), get(g + i, m, gradient), keep ? keep + i : nullptr, m);
    }
  }

  // gx and gr may be null.
  void backward(const T* x, const T* r, const T* g, T* gx, T* gr, int64_t n, Affine<A> map, Slope<A> slope) const {
    if (straight()) {
      after_->backward_strip(as_arithmetic(x), as_arithmetic(r), as_arithmetic(g), as_arithmetic(gx), as_arithmetic(gr), n, map,
                             slope, parameter_);
      return;
    }
    A z[tile], spare[tile], residual[tile], gradient[tile], gz[tile], gu[tile];
    for (int64_t i = 0; i < n; i += tile) {
      const int64_t m = min(n - i, tile);
      const A* source = input(x + i, r ? r + i : nullptr, m, z, spare);
      after_->backward_strip(source, late_residual(r, i, m, residual), get(g + i, m, gradient), gz, gu, m, map, slope, parameter_);
      if (before_) {
        if (gr) put(gz, gr + i, m);
        if (gx) before_->backward_strip(get(x + i, m, spare), nullptr, gz, gu, nullptr, m, {0, 1, 0}, {1, 0, 0}, parameter_);
        if (gx) put(gu, gx + i, m);
      } else {
        if (gr) put(gu, gr + i, m);
        if (gx) put(gz, gx + i, m);
      }
    }
  }

  // The same from gu as reduce kept it. Only where the activation comes last.
  void backward_kept(const T* x, const A* gu, T* gx, T* gr, int64_t n, Affine<A> map, Slope<A> slope) const {
    const Spans<A>& plain = spans<A>(Activation::identity);
    if constexpr (same) {
      plain.backward_strip(x, nullptr, gu, gx, gr, n, map, slope, 0);
    } else {
      A wide[tile], out[tile];
      for (int64_t i = 0; i < n; i += tile) {
        const int64_t m = min(n - i, tile);
        plain.backward_strip(get(x + i, m, wide), nullptr, gu + i, out, nullptr, m, map, slope, 0);
        if (gr) put(gu + i, gr + i, m);
        if (gx) put(out, gx + i, m);
      }
    }
  }

  template <class F>
  void visit_rows(Rows<const T> x, Rows<const T> r, int64_t rows, int64_t columns, F&& f) const {
    if (straight()) {
      f(Rows<const A>{as_arithmetic(x.first), x.stride}, 0, rows, columns);
      return;
    }
    A z[tile], spare[tile];
    tiles(rows, columns, [&](int64_t row, int64_t column, int64_t height, int64_t width) {
      for (int64_t k = 0; k < height; ++k) {
        const A* source = input(at(x, row + k, column), r ? at(r, row + k, column) : nullptr, width, z + k * width, spare);
        if (source != z + k * width) std::memcpy(z + k * width, source, width * sizeof(A));
      }
      f(Rows<const A>{z, width}, column, height, width);
    });
  }

  void forward_rows(Rows<const T> x, Rows<const T> r, Rows<T> y, int64_t rows, int64_t columns, AffineColumns<A> map,
                    int64_t ahead) const {
    if (straight()) {
      after_->forward_rows(cast(x), cast(r), {as_arithmetic(y.first), y.stride}, rows, columns, map, parameter_, ahead);
      return;
    }
    A out[tile];
    staged(x, r, {}, rows, columns, [&](auto z, auto residual, auto, int64_t row, int64_t column, int64_t height, int64_t width) {
      after_->forward_rows(z, residual, {out, width}, height, width, shifted(map, column), parameter_, 0);
      for (int64_t k = 0; k < height; ++k) put(out + k * width, at(y, row + k, column), width);
    });
  }

  void reduce_rows(Rows<const T> x, Rows<const T> r, Rows<const T> g, Rows<A> keep, int64_t rows, int64_t columns,
                   AffineColumns<A> map, double* gradient_sums, double* product_sums, int64_t ahead) const {
    if (straight()) {
      after_->reduce_rows(cast(x), cast(r), cast(g), keep, rows, columns, map, parameter_, gradient_sums, product_sums, ahead);
      return;
    }
    staged(x, r, g, rows, columns,
           [&](auto z, auto residual, auto gradient, int64_t row, int64_t column, int64_t height, int64_t width) {
             after_->reduce_rows(z, residual, gradient, part_of(keep, row, column), height, width, shifted(map, column), parameter_,
                                 gradient_sums + column, product_sums + column, 0);
           });
  }

  void backward_rows_kept(Rows<const T> x, Rows<const A> gu, Rows<T> gx, Rows<T> gr, int64_t rows, int64_t columns,
                          AffineColumns<A> map, SlopeColumns<A> slope) const {
    const Spans<A>& plain = spans<A>(Activation::identity);
    if constexpr (same) {
      plain.backward_rows(x, {nullptr, 0}, gu, gx, gr, rows, columns, map, slope, 0);
    } else {
      A out[tile];
      staged(x, {nullptr, 0}, {nullptr, 0}, rows, columns,
             [&](auto z, auto, auto, int64_t row, int64_t column, int64_t height, int64_t width) {
               plain.backward_rows(z, {nullptr, 0}, part_of(gu, row, column), {out, width}, {nullptr, 0}, height, width,
                                   shifted(map, column), shifted(slope, column), 0);
               for (int64_t k = 0; k < height; ++k) {
                 if (gr) put(at(gu, row + k, column), at(gr, row + k, column), width);
                 if (gx) put(out + k * width, at(gx, row + k, column), width);
               }
             });
    }
  }

  void backward_rows(Rows<const T> x, Rows<const T> r, Rows<const T> g, Rows<T> gx, Rows<T> gr, int64_t rows, int64_t columns,
                     AffineColumns<A> map, SlopeColumns<A> slope) const {
    if (straight()) {
      after_->backward_rows(cast(x), cast(r), cast(g), {as_arithmetic(gx.first), gx.stride}, {as_arithmetic(gr.first), gr.stride},
                            rows, columns, map, slope, parameter_);
      return;
    }
    A gz[tile], gu[tile], spare[tile];
    staged(x, r, g, rows, columns,
           [&](auto z, auto residual, auto gradient, int64_t row, int64_t column, int64_t height, int64_t width) {
             after_->backward_rows(z, residual, gradient, {gz, width}, {gu, width}, height, width, shifted(map, column),
                                   shifted(slope, column), parameter_);
             for (int64_t k = 0; k < height; ++k) {
               A *gz_row = gz + k * width, *gu_row = gu + k * width;
               if (before_) {
                 if (gr) put(gz_row, at(gr, row + k, column), width);
                 if (!gx) continue;
                 before_->backward_strip(get(at(x, row + k, column), width, spare), nullptr, gz_row, gu_row, nullptr, width,
                                         {0, 1, 0}, {1, 0, 0}, parameter_);
                 put(gu_row, at(gx, row + k, column), width);
               } else {
                 if (gr) put(gu_row, at(gr, row + k, column), width);
                 if (gx) put(gz_row, at(gx, row + k, column), width);
               }
             }
           });
  }

 private:
  static constexpr int64_t tile = 1024;
  static constexpr bool same = std::is_same_v<T, A>;

  bool straight() const { return same && !before_; }
  static int64_t min(int64_t a, int64_t b) { return a < b ? a : b; }
  static const A* as_arithmetic(const T* p) { return reinterpret_cast<const A*>(p); }
  static A* as_arithmetic(T* p) { return reinterpret_cast<A*>(p); }
  static Rows<const A> cast(Rows<const T> rows) { return {as_arithmetic(rows.first), rows.stride}; }
  static AffineColumns<A> shifted(AffineColumns<A> map, int64_t by) { return {map.center + by, map.scale + by, map.shift + by}; }
  static SlopeColumns<A> shifted(SlopeColumns<A> slope, int64_t by) {
    return {slope.by_gradient + by, slope.by_input + by, slope.constant + by};
  }
  template <class P>
  static Rows<P> part_of(Rows<P> rows, int64_t row, int64_t column) {
    return rows ? Rows<P>{at(rows, row, column), rows.stride} : rows;
  }

  template <class P>
  static P* at(Rows<P> rows, int64_t row, int64_t column) {
    return rows.first + row * rows.stride + column;
  }

  static const A* get(const T* p, int64_t n, A* buffer) {
    if constexpr (same) {
      return p;
    } else {
      widen(p, buffer, n);
      return buffer;
    }
  }
  static void put(const A* buffer, T* p, int64_t n) {
    if constexpr (same) std::memcpy(p, buffer, n * sizeof(A));
    else narrow(buffer, p, n);
  }

  // x, or act(x) + r where the activation comes first.
  const A* input(const T* x, const T* r, int64_t n, A* z, A* spare) const {
    if (!before_) return get(x, n, z);
    before_->forward_strip(get(x, n, spare), nullptr, z, n, {0, 1, 0}, parameter_, 0);
    if (r) {
      const A* residual = get(r, n, spare);
      for (int64_t i = 0; i < n; ++i) z[i] += residual[i];
    }
    return z;
  }
  // The residual that the loops add after the affine map: none where it was part of the input.
  const A* late_residual(const T* r, int64_t offset, int64_t n, A* buffer) const {
    return r && !before_ ? get(r + offset, n, buffer) : nullptr;
  }

  template <class F>
  static void tiles(int64_t rows, int64_t columns, F&& f) {
    const int64_t width = min(columns, tile), height = tile / width;
    for (int64_t row = 0; row < rows; row += height)
      for (int64_t column = 0; column < columns; column += width)
        f(row, column, min(height, rows - row), min(width, columns - column));
  }

  template <class F>
  void staged(Rows<const T> x, Rows<const T> r, Rows<const T> g, int64_t rows, int64_t columns, F&& f) const {
    A z[tile], residual[tile], gradient[tile], spare[tile];
    const bool late = bool(r) && !before_;
    tiles(rows, columns, [&](int64_t row, int64_t column, int64_t height, int64_t width) {
      for (int64_t k = 0; k < height; ++k) {
        copy(input(at(x, row + k, column), r ? at(r, row + k, column) : nullptr, width, z + k * width, spare), z + k * width,
             width);
        if (late) copy(get(at(r, row + k, column), width, residual + k * width), residual + k * width, width);
        if (g) copy(get(at(g, row + k, column), width, gradient + k * width), gradient + k * width, width);
      }
      f(Rows<const A>{z, width}, Rows<const A>{late ? residual : nullptr, width}, Rows<const A>{gradient, width}, row, column,
        height, width);
    });
  }
  static void copy(const A* from, A* to, int64_t n) {
    if (from != to) std::memcpy(to, from, n * sizeof(A));
  }

  const Spans<A>* after_;   // the activation after the affine map
  const Spans<A>* before_;  // the activation before the norm, where it comes first
  A parameter_;
};

}  // namespace fastdl
