// The two products of a convolution, tile by tile.
#pragma once

#include <array>
#include <utility>

#include "convolution_finish.h"

namespace fastdl {

// A tile of the result that stays in registers: 8 rows, as batches are mostly a multiple of 8, of 2 vectors. With 6 rows of 4, as
// matrix.h has, ResNet-18's convolutions took 2 to 9 % longer on two cores of Zen 5.
#if FASTDL_AVX512 || defined(__aarch64__)
inline constexpr int convolution_rows = 8;
#else
inline constexpr int convolution_rows = 6;
#endif
inline constexpr int convolution_vectors = 2;
inline constexpr int64_t convolution_panel = convolution_vectors * lanes<float>;  // channels

// Rows of a result: the row r is the sum over taps and depths of sources[tap][r][depth] weights[tap][depth], onto a bias, or onto
// what an earlier block of depths left there.
struct GatheredTile {
  const int32_t* taps;          // those that some row finds inside its source, tap_count of them
  const float* const* sources;  // (tap_count, convolution_rows)
  int64_t tap_count, first_depth, depth;
  const float* weights;
  int64_t weight_step;  // from tap to tap
  float* const* results;
  int64_t column;
  const float* bias;  // of the panel's columns, or null
  bool accumulate;
  const Finish* finish;  // or null, as for all but the last block of depths
  // What the tile after this one reads first: brought into the cache line by line while this one is worked on, as a tile's rows lie
  // too far apart for the processor to foresee them, and are too long to ask for at once.
  const float* const* next;
};

// Never inlined: in its caller, GCC 12 spills accumulators.
template <int rows, int vectors, bool fetches>
__attribute__((noinline)) void gathered_tile(const GatheredTile& tile) {
  constexpr int width = lanes<float>;
  Vector<float> sums[rows][vectors];
#pragma GCC unroll 16
  for (int r = 0; r < rows; ++r)
#pragma GCC unroll 16
    for (int v = 0; v < vectors; ++v) sums[r][v] = Vector<float>{};
  const int64_t depth = tile.depth;
  for (int64_t i = 0; i < tile.tap_count; ++i) {
    const float* source[rows];
#pragma GCC unroll 16
    for (int r = 0; r < rows; ++r) source[r] = tile.sources[i * convolution_rows + r] + tile.first_depth;
    const float* weights = tile.weights + tile.taps[i] * tile.weight_step;
    constexpr int64_t line = 64 / sizeof(float);
    for (int64_t begin = 0; begin < depth; begin += fetches ? line : depth) {
      const int64_t end = fetches && depth - begin > line ? begin + line : depth;
      if (fetches && i == 0) {
        for (int r = 0; r < rows; ++r) __builtin_prefetch(tile.next[r] + tile.first_depth + begin);
      }
      for (int64_t k = begin; k < end; ++k, weights += vectors * width) {
        Vector<float> row[vectors];
#pragma GCC unroll 16
        for (int v = 0; v < vectors; ++v) row[v] = load_vector(weights + v * width);
#pragma GCC unroll 16
        for (int r = 0; r < rows; ++r) {
          const Vector<float> value = broadcast(source[r][k]);
#pragma GCC unroll 16
          for (int v = 0; v < vectors; ++v) sums[r][v] += value * row[v];
        }
      }
    }
  }
  float kept[rows * vectors * width];
#pragma GCC unroll 16
  for (int r = 0; r < rows; ++r)
#pragma GCC unroll 16
    for (int v = 0; v < vectors; ++v) {
      float* to = tile.results[r] + tile.column + v * width;
      if (tile.accumulate) sums[r][v] += load_vector(to);
      else if (tile.bias) sums[r][v] += load_vector(tile.bias + v * width);
      store_vector<float>(tile.finish ? kept + (r * vectors + v) * width : to, sums[r][v]);
    }
  // From here, as to go over the results where they lie cost up to a third of a 1x1 convolution of 100 MB.
  if (tile.finish) tile.finish->rows(*tile.finish, kept, tile.results, rows, vectors, tile.column);
}

// A run of positions: of the input, `step` apart, and of the output's gradient, a panel apart.
struct Run {
  const float *input, *gradient;
  int64_t count;
};

// A tile of the weight's gradient: to result[r][..] the sum over all runs' positions of input[r] gradient[..].
template <int rows, int vectors>
__attribute__((noinline)) void correlated_tile(const Run* runs, int64_t run_count, int64_t step, int64_t channel, float* result) {
  constexpr int width = lanes<float>;
  Vector<float> sums[rows][vectors];
#pragma GCC unroll 16
  for (int r = 0; r < rows; ++r)
#pragma GCC unroll 16
    for (int v = 0; v < vectors; ++v) sums[r][v] = Vector<float>{};
  for (int64_t i = 0; i < run_count; ++i) {
    const float *input = runs[i].input + channel, *gradient = runs[i].gradient;
    for (int64_t k = runs[i].count; k > 0; --k, input += step, gradient += vectors * width) {
      Vector<float> row[vectors];
#pragma GCC unroll 16
      for (int v = 0; v < vectors; ++v) row[v] = load_vector(gradient + v * width);
#pragma GCC unroll 16
      for (int r = 0; r < rows; ++r) {
        const Vector<float> value = broadcast(input[r]);
#pragma GCC unroll 16
        for (int v = 0; v < vectors; ++v) sums[r][v] += value * row[v];
      }
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < rows; ++r)
#pragma GCC unroll 16
    for (int v = 0; v < vectors; ++v) {
      float* to = result + (r * vectors + v) * width;
      store_vector<float>(to, load_vector(to) + sums[r][v]);
    }
}

// Tables of these by the number of rows, then of vectors, each from 1.
template <template <int, int> class Kernel, int... i>
constexpr auto convolution_table(std::integer_sequence<int, i...>) {
  return std::array{&Kernel<i / convolution_vectors + 1, i % convolution_vectors + 1>::run...};
}
template <int rows, int vectors>
struct Gathered {
  static void run(const GatheredTile& tile) {
    if (tile.next) gathered_tile<rows, vectors, true>(tile);
    else gathered_tile<rows, vectors, false>(tile);
  }
};
template <int rows, int vectors>
struct Correlated {
  static void run(const Run* runs, int64_t run_count, int64_t step, int64_t channel, float* result) {
    correlated_tile<rows, vectors>(runs, run_count, step, channel, result);
  }
};
inline constexpr auto gathered_tiles =
    convolution_table<Gathered>(std::make_integer_sequence<int, convolution_rows * convolution_vectors>{});
inline constexpr auto correlated_tiles =
    convolution_table<Correlated>(std::make_integer_sequence<int, convolution_rows * convolution_vectors>{});
inline int64_t convolution_tile_index(int64_t rows, int64_t vectors) { return (rows - 1) * convolution_vectors + vectors - 1; }

}  // namespace fastdl
