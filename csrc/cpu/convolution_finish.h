// What comes behind a convolution without a norm: a tile's results pass through it on their way from the registers to memory.
#pragma once

#include <array>
#include <utility>

#include "activations.h"

namespace fastdl {

// results = act(sums + residual), of a tile's rows from a column on. The residual lies in memory as the whole result does.
struct Finish {
  const float *result, *residual;  // where the whole ones begin; the residual may be null
  float parameter;                 // of the activation
  void (*rows)(const Finish& finish, const float* sums, float* const* results, int64_t rows, int64_t vectors, int64_t column);
};

template <Activation activation>
__attribute__((noinline)) void finish_rows(const Finish& finish, const float* sums, float* const* results, int64_t rows,
                                           int64_t vectors, int64_t column) {
  constexpr int width = lanes<float>;
  for (int64_t r = 0; r < rows; ++r) {
    float* to = results[r] + column;
    const float* added = finish.residual ? finish.residual + (to - finish.result) : nullptr;
    for (int64_t v = 0; v < vectors; ++v, sums += width) {
      Vector<float> u = load_vector(sums);
      if (added) u += load_vector(added + v * width);
      store_vector<float>(to + v * width, Activate<float, activation>::value(u, finish.parameter));
    }
  }
}

template <int... i>
constexpr auto finish_table(std::integer_sequence<int, i...>) {
  return std::array{&finish_rows<Activation(i)>...};
}
inline constexpr auto finishes = finish_table(std::make_integer_sequence<int, activation_count>{});

}  // namespace fastdl
