// Matrices of tensors, of any strides, brought to the form that products read: rows of units for A, panels for B.
#pragma once

#include "matrix.h"

namespace fastdl {

// The most columns that a matrix of a tensor may have, and how many rows are packed at a time.
inline constexpr int64_t most_columns = 256;
inline constexpr int64_t packed_rows = 16;

template <class T>
struct MatrixRows {
  T* first;
  int64_t row, column;  // strides, in values

  MatrixRows from(int64_t index) const { return {first + index * row, row, column}; }
  // A row as contiguous memory: where it lies, or gathered.
  const T* contiguous(int64_t index, int64_t columns, std::remove_const_t<T>* scratch) const {
    const T* p = first + index * row;
    if (column == 1 || columns == 1) return p;
    for (int64_t i = 0; i < columns; ++i) scratch[i] = p[i * column];
    return scratch;
  }
};

template <class T, class P>
struct Packing {
  using Unit = typename P::Unit;
  using Sum = typename P::Sum;
  static constexpr int width = lanes<Sum>;
  using Units = typename P::Units;

  // `width` units of a contiguous row of values, from unit `at` on; zero beyond its `columns` values.
  static FASTDL_INLINE Units load(const T* row, int64_t at, int64_t columns) {
    const int64_t rest = columns - at * P::values_of_unit;
    Units units;
    if constexpr (P::values_of_unit == 1) {
      units = rest >= width ? load_vector(row + at) : rest > 0 ? load_first(row + at, int(rest)) : Units{};
#if FASTDL_BFLOAT16_PAIRS
    } else {
      const __mmask32 there = rest >= 32 ? ~0u : rest > 0 ? (1u << rest) - 1 : 0;
      units = (Units)_mm512_maskz_loadu_epi16(there, row + at * 2);
#endif
    }
    return units;
  }

  // A: rows of units, `step` apart, of whole vectors.
  static void rows(const MatrixRows<const T>& from, int64_t count, int64_t columns, Unit* out, int64_t step) {
    T scratch[most_columns];
    const int64_t units = (columns + P::values_of_unit - 1) / P::values_of_unit;
    for (int64_t r = 0; r < count; ++r) {
      const T* row = from.contiguous(r, columns, scratch);
      for (int64_t i = 0; i < units; i += width) {
        const Units loaded = load(row, i, columns);
        std::memcpy(out + r * step + i, &loaded, sizeof loaded);
      }
    }
  }

  // B, transposed: row `r` of the tensor becomes column r; the rows from `begin`, a multiple of packed_rows, to `end`.
  static void transposed(const MatrixRows<const T>& from, int64_t begin, int64_t end, int64_t columns, const Panels<P>& out) {
    T scratch[packed_rows][most_columns];
    for (int64_t r = begin; r < end; r += width) {
      const T* rows[width];
      const int count = int(end - r < width ? end - r : width);
      for (int i = 0; i < count; ++i) rows[i] = from.contiguous(r + i, columns, scratch[i]);
      const int64_t panel = r / panel_columns<P>, step = out.width(panel);
      Unit* to = out.panel(panel) + r % panel_columns<P>;
      for (int64_t k = 0; k < out.depth; k += width) {
        const int64_t depth = out.depth - k < width ? out.depth - k : width;
        Units block[width];
        for (int i = 0; i < width; ++i) block[i] = i < count ? load(rows[i], k, columns) : Units{};
        transpose(block);
        for (int64_t i = 0; i < depth; ++i) std::memcpy(to + (k + i) * step, &block[i], sizeof block[i]);
      }
    }
  }

  // B as it lies: the tensor's rows, or pairs of rows, are the depth; those from `begin`, a multiple of packed_rows, to `end`.
  static void straight(const MatrixRows<const T>& from, int64_t begin, int64_t end, int64_t columns, const Panels<P>& out) {
    T scratch[2][most_columns];
    for (int64_t r = begin; r < end; r += P::values_of_unit) {
      const T* row = from.contiguous(r, columns, scratch[0]);
      [[maybe_unused]] const T* second = nullptr;
      if constexpr (P::values_of_unit == 2) second = r + 1 < end ? from.contiguous(r + 1, columns, scratch[1]) : nullptr;
      for (int64_t panel = 0; panel < out.count(); ++panel) {
        const int64_t step = out.width(panel);
        Unit* to = out.panel(panel) + r / P::values_of_unit * step;
        for (int64_t i = 0; i < step; i += width) {
          const int64_t column = panel * panel_columns<P> + i;
          Units units;
          if constexpr (P::values_of_unit == 1) {
            units = load(row, column, columns);
#if FASTDL_BFLOAT16_PAIRS
          } else {
            const int64_t rest = columns - column;
            const __mmask16 there = __mmask16(rest >= 16 ? 0xffff : rest > 0 ? (1 << rest) - 1 : 0);
            const __m512i low = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(there, row + column));
            const __m256i upper = second ? _mm256_maskz_loadu_epi16(there, second + column) : _mm256_setzero_si256();
            units = (Units)_mm512_or_si512(low, _mm512_slli_epi32(_mm512_cvtepu16_epi32(upper), 16));
#endif
          }
          std::memcpy(to + i, &units, sizeof units);
        }
      }
    }
  }

 private:
  // A square of units, in place.
  static FASTDL_INLINE void transpose(Units (&block)[width]) {
#if FASTDL_AVX512
    if constexpr (width == 16) {
      // Pairs, quads, then quarters of vectors change places: 64 shuffles for 256 units.
      __m512 a[16], b[16];
      for (int i = 0; i < 16; ++i) a[i] = (__m512)block[i];
      for (int i = 0; i < 16; i += 2) {
        b[i] = _mm512_unpacklo_ps(a[i], a[i + 1]);
        b[i + 1] = _mm512_unpackhi_ps(a[i], a[i + 1]);
      }
      for (int i = 0; i < 16; i += 4) {
        a[i] = (__m512)_mm512_unpacklo_pd((__m512d)b[i], (__m512d)b[i + 2]);
        a[i + 1] = (__m512)_mm512_unpackhi_pd((__m512d)b[i], (__m512d)b[i + 2]);
        a[i + 2] = (__m512)_mm512_unpacklo_pd((__m512d)b[i + 1], (__m512d)b[i + 3]);
        a[i + 3] = (__m512)_mm512_unpackhi_pd((__m512d)b[i + 1], (__m512d)b[i + 3]);
      }
      for (int i = 0; i < 4; ++i) {
        b[i] = _mm512_shuffle_f32x4(a[i], a[i + 4], 0x88);
        b[i + 4] = _mm512_shuffle_f32x4(a[i], a[i + 4], 0xdd);
        b[i + 8] = _mm512_shuffle_f32x4(a[i + 8], a[i + 12], 0x88);
        b[i + 12] = _mm512_shuffle_f32x4(a[i + 8], a[i + 12], 0xdd);
      }
      for (int i = 0; i < 8; ++i) {
        block[i] = (Units)_mm512_shuffle_f32x4(b[i], b[i + 8], 0x88);
        block[i + 8] = (Units)_mm512_shuffle_f32x4(b[i], b[i + 8], 0xdd);
      }
      return;
    }
#endif
    Unit from[width][width], to[width][width];
    std::memcpy(from, block, sizeof from);
    for (int i = 0; i < width; ++i)
      for (int j = 0; j < width; ++j) to[j][i] = from[i][j];
    std::memcpy(block, to, sizeof to);
  }
};

// What a row pass of attention makes: rows of sums as units, for the next product.
template <class P>
FASTDL_INLINE void store_units(typename P::Unit* row, int64_t at, Vector<typename P::Sum> values) {
  if constexpr (P::values_of_unit == 1) store_vector(row + at, values);
  else store_vector(reinterpret_cast<BFloat16*>(row) + at, values);
}

#if FASTDL_BFLOAT16_PAIRS
// Two rows of floats as pairs one above the other; the second may be null, for zeros. n is a multiple of a vector's width.
inline void pair_rows(const float* first, const float* second, int64_t n, uint32_t* out) {
  for (int64_t i = 0; i < n; i += 16) {
    const __m512i low = _mm512_cvtepu16_epi32((__m256i)narrow(load_vector(first + i), BFloat16{}));
    __m512i high = _mm512_setzero_si512();
    if (second) high = _mm512_slli_epi32(_mm512_cvtepu16_epi32((__m256i)narrow(load_vector(second + i), BFloat16{})), 16);
    _mm512_storeu_si512(out + i, _mm512_or_si512(low, high));
  }
}
#endif

}  // namespace fastdl
