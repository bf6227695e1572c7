// Which weights dropout keeps: backward makes the same choices, from a seed and the weight's place, without having kept them.
#pragma once

#include "philox.h"

namespace fastdl {

inline constexpr int64_t dropout_columns = philox_choices;

struct DropoutRow {
  uint64_t seed;
  uint32_t row, head, sequence;
};

// factors[j] = kept or 0 for the key first + j; `first` is a multiple of 8, and there is room for a multiple of dropout_columns.
template <class A>
inline void dropout_factors(const DropoutRow& place, int64_t first, int64_t count, int32_t dropped, A kept, A* factors) {
  for (int64_t column = 0; column < count; column += dropout_columns) {
    PhiloxWords words;
    for (int i = 0; i < philox_calls; ++i) {
      words.word[0][i] = uint32_t((first + column) / 8 + i);
      words.word[1][i] = place.row;
      words.word[2][i] = place.head;
      words.word[3][i] = place.sequence;
    }
    philox(place.seed, words);
    factors_by_call(words, dropped, kept, factors + column);
  }
}

}  // namespace fastdl
