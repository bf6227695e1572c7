// Which weights dropout keeps, as fastdl/reference/dropout.py defines it: Philox 4x32-10 (Salmon et al. 2011) of a seed and of the
// weight's place, so that backward makes the same choices without having kept them.
#pragma once

#include <cstdint>
#include <cstring>

namespace fastdl {

// A call of Philox decides on 8 keys, and 16 calls are computed side by side.
inline constexpr int64_t dropout_columns = 128;

struct DropoutRow {
  uint64_t seed;
  uint32_t row, head, sequence;
};

// factors[j] = kept or 0 for the key first + j; `first` is a multiple of 8, and there is room for a multiple of dropout_columns.
template <class A>
inline void dropout_factors(const DropoutRow& place, int64_t first, int64_t count, int32_t dropped, A kept, A* factors) {
  constexpr int calls = dropout_columns / 8;
  for (int64_t column = 0; column < count; column += dropout_columns) {
    uint32_t c[4][calls];
    for (int i = 0; i < calls; ++i) {
      c[0][i] = uint32_t((first + column) / 8 + i);
      c[1][i] = place.row;
      c[2][i] = place.head;
      c[3][i] = place.sequence;
    }
    uint32_t key0 = uint32_t(place.seed), key1 = uint32_t(place.seed >> 32);
    for (int round = 0; round < 10; ++round) {
      for (int i = 0; i < calls; ++i) {
        const uint64_t product0 = uint64_t(0xD2511F53u) * c[0][i], product1 = uint64_t(0xCD9E8D57u) * c[2][i];
        c[0][i] = uint32_t(product1 >> 32) ^ c[1][i] ^ key0;
        c[1][i] = uint32_t(product1);
        c[2][i] = uint32_t(product0 >> 32) ^ c[3][i] ^ key1;
        c[3][i] = uint32_t(product0);
      }
      key0 += 0x9E3779B9u;  // the golden ratio
      key1 += 0xBB67AE85u;  // the square root of 3, less 1
    }
    for (int i = 0; i < calls; ++i)
      for (int word = 0; word < 4; ++word) {
        factors[column + 8 * i + 2 * word] = int32_t(c[word][i] & 0xffff) >= dropped ? kept : A(0);
        factors[column + 8 * i + 2 * word + 1] = int32_t(c[word][i] >> 16) >= dropped ? kept : A(0);
      }
  }
}

}  // namespace fastdl
