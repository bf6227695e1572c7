// What the kernels of attention's backward share: tiles, and a tile's weights and their gradients from the two products.
#pragma once

#include <type_traits>

#include "attention_backward.h"
#include "attention_scores.cuh"
#include "attention_sizes.h"

namespace fastdl::cuda {

template <class T, int D>
inline constexpr AttentionSizes backward_sizes = attention_backward_sizes(sizeof(T) == 4, D);

// Two tiles of rows, and `stages` times two tiles of columns with two numbers a column.
template <class T, int D>
inline constexpr int backward_stages = D <= 128 && !(sizeof(T) == 4 && D > 64) ? 2 : 1;
template <class T, int D>
inline constexpr size_t backward_shared_bytes =
    attention_tile_bytes(sizeof(T) == 4, D,
                         2 * backward_sizes<T, D>.rows + 2 * backward_stages<T, D> * backward_sizes<T, D>.columns) +
    size_t(backward_stages<T, D>) * 2 * sizeof(float) * backward_sizes<T, D>.columns;

// p holds the scores' exponents and becomes weights; gradients holds a factor and becomes the gradients of scores. Where a score is
// not seen both are zero, even if the factor is not a number.
template <class T, int count, class LogSumOf>
__device__ __forceinline__ void weigh_gradients(float (&p)[count][4], float (&gradients)[count][4], LogSumOf log_sum_of) {
#pragma unroll
  for (int n = 0; n < count; ++n)
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      const bool seen = p[n][e] != -INFINITY;
      p[n][e] = power<T>(p[n][e] - log_sum_of(n, e));
      gradients[n][e] = seen ? p[n][e] * gradients[n][e] : 0.0f;
    }
}

// The gradient of each weight as it is after dropout, less delta.
template <int count, class DeltaOf>
__device__ __forceinline__ void subtract_delta(float (&gradients)[count][4], const Dropout& dropout, uint32_t kept,
                                               DeltaOf delta_of) {
  if (dropout.dropped) {
#pragma unroll
    for (int n = 0; n < count; ++n)
#pragma unroll
      for (int e = 0; e < 4; ++e) gradients[n][e] = (kept >> (4 * n + e) & 1u) ? gradients[n][e] * dropout.scale : 0.0f;
  }
#pragma unroll
  for (int n = 0; n < count; ++n)
#pragma unroll
    for (int e = 0; e < 4; ++e) gradients[n][e] -= delta_of(n, e);
}

// By features; a kernel that holds two sums of the widest rows has no registers left, see attention_backward_key.cuh.
template <class T, class F>
int by_width(const Attention& attention, F launch) {
  const int features = attention.features > attention.value_features ? attention.features : attention.value_features;
  switch (attention_width(attention.dtype, features)) {
    case 64: return launch(std::integral_constant<int, 64>{});
    case 128: return launch(std::integral_constant<int, 128>{});
    case 256: return launch(std::integral_constant<int, 256>{});
  }
  if constexpr (sizeof(T) == 2) {
    switch (attention_width(attention.dtype, features)) {
      case 32: return launch(std::integral_constant<int, 32>{});
      case 96: return launch(std::integral_constant<int, 96>{});
      case 192: return launch(std::integral_constant<int, 192>{});
    }
  }
  return 1;
}

}  // namespace fastdl::cuda
