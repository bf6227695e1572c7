// A convolution's weight in panels of output channels (or of input channels, for the data's gradient), and its gradient back.
#pragma once

#include <algorithm>
#include <vector>

#include "convolution.h"
#include "convolution_tiles.h"
#include "parallel.h"
#include "scratch.h"

namespace fastdl {

// low, high = a0 b0 a1 b1 ...
FASTDL_INLINE void interleave(Vector<float> a, Vector<float> b, Vector<float>& low, Vector<float>& high) {
#if FASTDL_AVX512
  const __m512i first = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
  low = (Vector<float>)_mm512_permutex2var_ps((__m512)a, first, (__m512)b);
  high = (Vector<float>)_mm512_permutex2var_ps((__m512)a, _mm512_add_epi32(first, _mm512_set1_epi32(8)), (__m512)b);
#else
  constexpr int half = lanes<float> / 2;
  for (int i = 0; i < half; ++i) {
    low[2 * i] = a[i];
    low[2 * i + 1] = b[i];
    high[2 * i] = a[half + i];
    high[2 * i + 1] = b[half + i];
  }
#endif
}

// to[j][i] = from[i][j], both of `lanes` by `lanes` values, with the steps given.
FASTDL_INLINE void transpose_square(const float* from, int64_t from_step, float* to, int64_t to_step) {
  constexpr int n = lanes<float>;
  Vector<float> rows[n];
#pragma GCC unroll 16
  for (int i = 0; i < n; ++i) rows[i] = load_vector(from + i * from_step);
  // Each round interleaves the first half of the rows with the second; after log2(n) of them the square is transposed.
#pragma GCC unroll 4
  for (int round = 1; round < n; round *= 2) {
    Vector<float> next[n];
#pragma GCC unroll 16
    for (int i = 0; i < n / 2; ++i) interleave(rows[i], rows[i + n / 2], next[2 * i], next[2 * i + 1]);
#pragma GCC unroll 16
    for (int i = 0; i < n; ++i) rows[i] = next[i];
  }
#pragma GCC unroll 16
  for (int i = 0; i < n; ++i) store_vector<float>(to + i * to_step, rows[i]);
}

struct ConvolutionTap {
  int64_t offset[3];  // of the source's position, in steps of 1
  int64_t weight;     // where the tap's values begin in the weight
};

// All taps of a convolution, from its output's position to its input's.
inline std::vector<ConvolutionTap> convolution_taps(const Convolution& c) {
  std::vector<ConvolutionTap> taps;
  const int64_t* strides = c.weight_strides + 2;
  for (int64_t i = 0; i < c.kernel[0]; ++i)
    for (int64_t j = 0; j < c.kernel[1]; ++j)
      for (int64_t k = 0; k < c.kernel[2]; ++k)
        taps.push_back({{i * c.dilation[0] - c.padding[0], j * c.dilation[1] - c.padding[1], k * c.dilation[2] - c.padding[2]},
                        i * strides[0] + j * strides[1] + k * strides[2]});
  return taps;
}

// Panels one behind the other, each (taps, depth, columns of the panel). `by_output`: columns are output channels and depths are
// input channels, else the other way round.
inline void pack_convolution_weight(const Convolution& convolution, const float* weight, const std::vector<ConvolutionTap>& taps,
                                    bool by_output, float* to) {
  const int64_t out_step = convolution.weight_strides[0], in_step = convolution.weight_strides[1], count = int64_t(taps.size());
  const int64_t columns = by_output ? convolution.out_channels : convolution.in_channels;
  const int64_t depth = by_output ? convolution.in_channels : convolution.out_channels;
  const int64_t column_step = by_output ? out_step : in_step, depth_step = by_output ? in_step : out_step;
  const int64_t panels = (columns + convolution_panel - 1) / convolution_panel;
  parallel(panels * count, depth * convolution_panel, [&](int64_t i) {
    const int64_t panel = i / count, tap = i % count, begin = panel * convolution_panel;
    const int64_t width = std::min(convolution_panel, columns - begin);
    float* rows = to + begin * count * depth + tap * depth * width;
    const float* from = weight + taps[tap].weight + begin * column_step;
    if (column_step == 1) {
      for (int64_t k = 0; k < depth; ++k) std::memcpy(rows + k * width, from + k * depth_step, width * sizeof(float));
      return;
    }
    constexpr int64_t n = lanes<float>;
    const int64_t squares = depth_step == 1 ? depth / n * n : 0;
    for (int64_t k = 0; k < squares; k += n)
      for (int64_t c = 0; c < width; c += n) transpose_square(from + c * column_step + k, column_step, rows + k * width + c, width);
    for (int64_t c = 0; c < width; ++c)
      for (int64_t k = squares; k < depth; ++k) rows[k * width + c] = from[c * column_step + k * depth_step];
  });
}

// The weight's gradient: the sum of `parts` buffers of panels of output channels, each panel (taps, in_channels, its columns).
inline void unpack_weight_gradient(const Convolution& convolution, const std::vector<ConvolutionTap>& taps, float* parts,
                                   int64_t part_count, float* weight) {
  const int64_t out_step = convolution.weight_strides[0], in_step = convolution.weight_strides[1], count = int64_t(taps.size());
  const int64_t columns = convolution.out_channels, depth = convolution.in_channels, part = count * columns * depth;
  const int64_t panels = (columns + convolution_panel - 1) / convolution_panel;
  parallel(panels * count, depth * convolution_panel, [&](int64_t i) {
    const int64_t panel = i / count, tap = i % count, begin = panel * convolution_panel;
    const int64_t width = std::min(convolution_panel, columns - begin);
    float* rows = parts + begin * count * depth + tap * depth * width;
    for (int64_t p = 1; p < part_count; ++p) {
      const float* more = rows + p * part;
      for (int64_t k = 0; k < depth * width; ++k) rows[k] += more[k];
    }
    float* to = weight + taps[tap].weight + begin * out_step;
    constexpr int64_t n = lanes<float>;
    const int64_t squares = in_step == 1 ? depth / n * n : 0;
    for (int64_t k = 0; k < squares; k += n)
      for (int64_t c = 0; c < width; c += n) transpose_square(rows + k * width + c, width, to + c * out_step + k, out_step);
    for (int64_t c = 0; c < width; ++c)
      for (int64_t k = squares; k < depth; ++k) to[c * out_step + k * in_step] = rows[k * width + c];
  });
}

}  // namespace fastdl
