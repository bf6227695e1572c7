// Dropout's choices: Philox 4x32-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3") of the seed, with the
// counter (key / 8, query, head, sequence). A call decides for eight keys of a query; fastdl/reference/dropout.py is the
// definition.
#pragma once

#include "attention_call.cuh"
#include "philox.cuh"

namespace fastdl::cuda {

struct Dropout {
  uint32_t key[2];
  uint32_t dropped;  // levels of 65536; 0 is no dropout
  float scale;       // of what is kept
};

__device__ __forceinline__ Dropout dropout_of(const Attention& call) {
  const uint64_t seed = call.seed_on_device ? uint64_t(*call.seed_on_device) : call.seed;
  const uint32_t dropped = uint32_t(call.dropped);
  return {{uint32_t(seed), uint32_t(seed >> 32)}, dropped, dropped < 65536 ? 65536.0f / float(65536 - dropped) : 0.0f};
}

__device__ __forceinline__ uint32_t word_of(const uint32_t (&words)[4], int i) {
  return i < 2 ? (i == 0 ? words[0] : words[1]) : (i == 2 ? words[2] : words[3]);
}

// Which weights of accumulators are kept, where rows are queries: bit 4 n + e is element e of tile n. The four threads of a row
// share its calls: each makes every fourth, and they exchange the words.
template <int count>
__device__ __forceinline__ uint32_t kept_of_queries(const Dropout& dropout, const int (&queries)[2], const int (&heads)[2],
                                                    uint32_t sequence, int first_key) {
  const int t = int(threadIdx.x % 4);
  uint32_t kept = 0;
#pragma unroll 1
  for (int round = 0; round < count / 2; ++round) {
    const int row = t % 2, tile = 2 * round + t / 2;
    uint32_t words[4] = {uint32_t(first_key / 8 + tile), uint32_t(row ? queries[1] : queries[0]),
                         uint32_t(row ? heads[1] : heads[0]), sequence};
    philox<1>(words, dropout.key[0], dropout.key[1]);
#pragma unroll
    for (int step = 0; step < 4; ++step) {
      const uint32_t word = device::shuffle_xor(word_of(words, t ^ step), step);
      const uint32_t pair = uint32_t((word & 0xffffu) >= dropout.dropped) | uint32_t((word >> 16) >= dropout.dropped) << 1;
      kept |= pair << (2 * (4 * round + (t ^ step)));
    }
  }
  return kept;
}

// The same where rows are keys and columns are queries: the eight threads of a column share its calls.
template <int count>
__device__ __forceinline__ uint32_t kept_of_keys(const Dropout& dropout, int first_query, int head, uint32_t sequence,
                                                 int first_key) {
  const int g = int(threadIdx.x % 32 / 4), t = int(threadIdx.x % 4);
  uint32_t kept = 0;
#pragma unroll 1
  for (int round = 0; round < count / 2; ++round) {
    const int query = first_query + 8 * (2 * round + g / 4) + 2 * t + g / 2 % 2;
    uint32_t words[4] = {uint32_t(first_key / 8 + g % 2), uint32_t(query), uint32_t(head), sequence};
    philox<1>(words, dropout.key[0], dropout.key[1]);
#pragma unroll
    for (int step = 0; step < 8; ++step) {
      const int other = g ^ step;
      const uint32_t word = device::shuffle_xor(word_of(words, other / 2), 4 * step);
      const uint32_t level = g % 2 ? word >> 16 : word & 0xffffu;
      kept |= uint32_t(level >= dropout.dropped) << (8 * round + other / 4 * 4 + other % 2 * 2 + other / 2 % 2);
    }
  }
  return kept;
}

template <int count>
__device__ __forceinline__ void drop(float (&p)[count][4], uint32_t kept) {
#pragma unroll
  for (int n = 0; n < count; ++n)
#pragma unroll
    for (int e = 0; e < 4; ++e)
      if (!(kept >> (4 * n + e) & 1u)) p[n][e] = 0.0f;
}

}  // namespace fastdl::cuda
