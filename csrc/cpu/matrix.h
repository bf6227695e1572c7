// Small products of matrices, C = A B, as attention needs them: A is read row by row or column by column where it lies, B in
// panels of a few vectors (matrix_pack.h). One step along the depth is a *unit*: a number, or two bfloat16 that one instruction
// multiplies and adds up, so that one loop serves both.
#pragma once

#include <array>
#include <utility>

#include "storage.h"

namespace fastdl {

// The tile of C that stays in registers: 6 rows of 4 vectors are 24 of 32 registers, where AVX2 and SSE2 have 16.
#if FASTDL_AVX512 || defined(__aarch64__)
inline constexpr int panel_vectors = 4;
#else
inline constexpr int panel_vectors = 2;
#endif
inline constexpr int tile_rows = 6;

template <class A>
struct WideProduct {
  using Unit = A;
  using Sum = A;
  static constexpr int values_of_unit = 1;
  using Units = Vector<A>;

  static FASTDL_INLINE Units spread(const Unit* p) { return broadcast(*p); }
  static FASTDL_INLINE Vector<A> multiply_add(Vector<A> sum, Units a, Units b) { return sum + a * b; }
};

#if FASTDL_AVX512 && defined(__AVX512BF16__)
#define FASTDL_BFLOAT16_PAIRS 1
struct PairProduct {
  using Unit = uint32_t;
  using Sum = float;
  static constexpr int values_of_unit = 2;
  typedef uint32_t Units __attribute__((vector_size(vector_bytes)));

  static FASTDL_INLINE Units spread(const Unit* p) { return (Units)_mm512_set1_epi32(int(*p)); }
  static FASTDL_INLINE Vector<float> multiply_add(Vector<float> sum, Units a, Units b) {
    return (Vector<float>)_mm512_dpbf16_ps((__m512)sum, (__m512bh)a, (__m512bh)b);
  }
};
template <class T>
using Product = std::conditional_t<std::is_same_v<T, BFloat16>, PairProduct, WideProduct<Arithmetic<T>>>;
#else
template <class T>
using Product = WideProduct<Arithmetic<T>>;
#endif

template <class P>
inline constexpr int panel_columns = panel_vectors * lanes<typename P::Sum>;

constexpr int64_t round_up(int64_t n, int64_t multiple) { return (n + multiple - 1) / multiple * multiple; }

// B: panels one behind the other, each `depth` rows of panel_columns, the last one narrower. Columns beyond the matrix are zero.
// Or, with `stride`, a matrix as it lies in a tensor, whose columns are whole vectors.
template <class P>
struct Panels {
  using Unit = typename P::Unit;
  Unit* data = nullptr;
  int64_t depth = 0, columns = 0;  // in units; in whole vectors
  int64_t stride = 0;

  Panels() = default;
  Panels(int64_t depth_values, int64_t column_count)
      : depth((depth_values + P::values_of_unit - 1) / P::values_of_unit),
        columns(round_up(column_count, lanes<typename P::Sum>)) {}

  int64_t size() const { return depth * columns; }
  int64_t count() const { return (columns + panel_columns<P> - 1) / panel_columns<P>; }
  int64_t width(int64_t panel) const {
    const int64_t rest = columns - panel * panel_columns<P>;
    return rest < panel_columns<P> ? rest : panel_columns<P>;
  }
  // From a row of a panel to the next.
  int64_t step(int64_t panel) const { return stride ? stride : width(panel); }
  Unit* panel(int64_t panel) const { return data + panel * panel_columns<P> * (stride ? 1 : depth); }
};

// One tile. `by_columns`: A's row r at depth k is a[k a_step + r], else a[r a_step + k]. Never inlined: in its caller, GCC 12
// spills accumulators, which costs a quarter of the speed.
template <class P, int rows, int vectors, bool by_columns>
__attribute__((noinline)) void multiply_tile(const typename P::Unit* a, int64_t a_step, const typename P::Unit* b, int64_t b_step,
                                             int64_t depth, typename P::Sum* c, int64_t c_step, bool accumulate) {
  using Sum = typename P::Sum;
  constexpr int width = lanes<Sum>;
  Vector<Sum> sums[rows][vectors];
#pragma GCC unroll 8
  for (int r = 0; r < rows; ++r)
#pragma GCC unroll 8
    for (int v = 0; v < vectors; ++v) sums[r][v] = Vector<Sum>{};
  for (int64_t k = 0; k < depth; ++k) {
    typename P::Units row[vectors];
#pragma GCC unroll 8
    for (int v = 0; v < vectors; ++v) std::memcpy(&row[v], b + k * b_step + v * width, sizeof row[v]);
#pragma GCC unroll 8
    for (int r = 0; r < rows; ++r) {
      const typename P::Units value = P::spread(by_columns ? a + k * a_step + r : a + r * a_step + k);
#pragma GCC unroll 8
      for (int v = 0; v < vectors; ++v) sums[r][v] = P::multiply_add(sums[r][v], value, row[v]);
    }
  }
  // What was there is added last: a sum over many blocks is then one of the blocks' sums, which rounds less.
#pragma GCC unroll 8
  for (int r = 0; r < rows; ++r)
#pragma GCC unroll 8
    for (int v = 0; v < vectors; ++v) {
      Sum* to = c + r * c_step + v * width;
      store_vector<Sum>(to, accumulate ? load_vector<Sum>(to) + sums[r][v] : sums[r][v]);
    }
}

template <class P, bool by_columns>
struct Tiles {
  using Unit = typename P::Unit;
  using Sum = typename P::Sum;
  using Tile = void (*)(const Unit*, int64_t, const Unit*, int64_t, int64_t, Sum*, int64_t, bool);

  template <int... i>
  static constexpr std::array<Tile, sizeof...(i)> table(std::integer_sequence<int, i...>) {
    return {&multiply_tile<P, i / panel_vectors + 1, i % panel_vectors + 1, by_columns>...};
  }
  static constexpr auto tiles = table(std::make_integer_sequence<int, tile_rows * panel_vectors>{});
  static Tile of(int64_t rows, int64_t vectors) { return tiles[(rows - 1) * panel_vectors + vectors - 1]; }
};

// Up to tile_rows rows of C, in the columns from `first` (the begin of a panel) to `last` (a multiple of a vector's width), from
// the depths from begin to end, in units. The result of a row does not depend on what else is computed with it.
template <class P, bool by_columns = false>
FASTDL_INLINE void multiply_rows(const typename P::Unit* a, int64_t a_step, int64_t rows, const Panels<P>& b, int64_t first,
                                 int64_t last, int64_t begin, int64_t end, typename P::Sum* c, int64_t c_step, bool accumulate) {
  constexpr int64_t panel = panel_columns<P>;
  for (int64_t column = first; column < last; column += panel) {
    const int64_t index = column / panel, width = b.width(index), step = b.step(index), rest = last - column;
    const int64_t vectors = (rest < width ? rest : width) / lanes<typename P::Sum>;
    Tiles<P, by_columns>::of(rows, vectors)(a + (by_columns ? begin * a_step : begin), a_step, b.panel(index) + begin * step, step,
                                            end - begin, c + column, c_step, accumulate);
  }
}

}  // namespace fastdl
