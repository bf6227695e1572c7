// Philox 4x32-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"), and dropout's choices by it, as
// fastdl/reference/dropout.py defines them: a call gives eight choices of 16 bits, and 16 calls are computed side by side.
#pragma once

#include <cstdint>

#include "vector.h"

namespace fastdl {

inline constexpr int philox_calls = 16;
inline constexpr int philox_choices = 8 * philox_calls;

// The four words of each call: its counter, and after the call its random words.
struct PhiloxWords {
  uint32_t word[4][philox_calls];
};

inline constexpr uint32_t philox_multipliers[2] = {0xD2511F53u, 0xCD9E8D57u};
inline constexpr uint32_t philox_steps[2] = {0x9E3779B9u, 0xBB67AE85u};  // the golden ratio; the square root of 3, less 1

#if FASTDL_AVX512 || FASTDL_AVX2
// Words lie in the lower halves of lanes of 64 bits, where a product finds its factors and the high word is a shift away. What the
// upper halves hold is never looked at.
#if FASTDL_AVX512
typedef __m512i PhiloxLanes;
FASTDL_INLINE PhiloxLanes philox_load(const uint32_t* p) { return _mm512_cvtepu32_epi64(_mm256_loadu_si256((const __m256i*)p)); }
FASTDL_INLINE void philox_store(uint32_t* p, PhiloxLanes v) { _mm256_storeu_si256((__m256i*)p, _mm512_cvtepi64_epi32(v)); }
FASTDL_INLINE PhiloxLanes philox_product(PhiloxLanes a, PhiloxLanes b) { return _mm512_mul_epu32(a, b); }
FASTDL_INLINE PhiloxLanes philox_all(uint32_t value) { return _mm512_set1_epi64(value); }
#else
typedef __m256i PhiloxLanes;
FASTDL_INLINE PhiloxLanes philox_load(const uint32_t* p) { return _mm256_cvtepu32_epi64(_mm_loadu_si128((const __m128i*)p)); }
FASTDL_INLINE void philox_store(uint32_t* p, PhiloxLanes v) {
  const __m256i packed = _mm256_permutevar8x32_epi32(v, _mm256_setr_epi32(0, 2, 4, 6, 0, 2, 4, 6));
  _mm_storeu_si128((__m128i*)p, _mm256_castsi256_si128(packed));
}
FASTDL_INLINE PhiloxLanes philox_product(PhiloxLanes a, PhiloxLanes b) { return _mm256_mul_epu32(a, b); }
FASTDL_INLINE PhiloxLanes philox_all(uint32_t value) { return _mm256_set1_epi64x(value); }
#endif

inline void philox(uint64_t seed, PhiloxWords& words) {
  typedef uint64_t Bits __attribute__((vector_size(sizeof(PhiloxLanes))));
  constexpr int count = int(sizeof(PhiloxLanes) / 8), sets = philox_calls / count;
  Bits c[4][sets];
  for (int w = 0; w < 4; ++w)
    for (int i = 0; i < sets; ++i) c[w][i] = (Bits)philox_load(words.word[w] + count * i);
  const PhiloxLanes multiplier0 = philox_all(philox_multipliers[0]), multiplier1 = philox_all(philox_multipliers[1]);
  uint32_t key0 = uint32_t(seed), key1 = uint32_t(seed >> 32);
#pragma GCC unroll 10
  for (int round = 0; round < 10; ++round) {
    const Bits keys0 = (Bits)philox_all(key0), keys1 = (Bits)philox_all(key1);
#pragma GCC unroll 8
    for (int i = 0; i < sets; ++i) {
      const Bits product0 = (Bits)philox_product((PhiloxLanes)c[0][i], multiplier0);
      const Bits product1 = (Bits)philox_product((PhiloxLanes)c[2][i], multiplier1);
      c[0][i] = (product1 >> 32) ^ c[1][i] ^ keys0;
      c[1][i] = product1;
      c[2][i] = (product0 >> 32) ^ c[3][i] ^ keys1;
      c[3][i] = product0;
    }
    key0 += philox_steps[0];
    key1 += philox_steps[1];
  }
  for (int w = 0; w < 4; ++w)
    for (int i = 0; i < sets; ++i) philox_store(words.word[w] + count * i, (PhiloxLanes)c[w][i]);
}
#else
inline void philox(uint64_t seed, PhiloxWords& words) {
  uint32_t (&c)[4][philox_calls] = words.word;
  uint32_t key0 = uint32_t(seed), key1 = uint32_t(seed >> 32);
  for (int round = 0; round < 10; ++round) {
    for (int i = 0; i < philox_calls; ++i) {
      const uint64_t product0 = uint64_t(philox_multipliers[0]) * c[0][i], product1 = uint64_t(philox_multipliers[1]) * c[2][i];
      c[0][i] = uint32_t(product1 >> 32) ^ c[1][i] ^ key0;
      c[1][i] = uint32_t(product1);
      c[2][i] = uint32_t(product0 >> 32) ^ c[3][i] ^ key1;
      c[3][i] = uint32_t(product0);
    }
    key0 += philox_steps[0];
    key1 += philox_steps[1];
  }
}
#endif

// What is kept is multiplied by `kept`, the rest by 0. Of choice j of call i stands factors[8 i + j].
template <class A>
inline void factors_by_call(const PhiloxWords& words, int32_t dropped, A kept, A* factors) {
#if FASTDL_AVX512 && defined(__BMI2__)
  if constexpr (sizeof(A) == 4) {
    if (dropped > 65535) {  // no level of 16 bits is as high
      for (int i = 0; i < philox_choices; ++i) factors[i] = 0;
      return;
    }
    // Bit 2 i + h of a comparison is half h of call i: eight calls' bits of each word are put where their choices stand.
    uint64_t low = 0, high = 0;
    for (int w = 0; w < 4; ++w) {
      const uint32_t kept_bits =
          _mm512_cmpge_epu16_mask(_mm512_loadu_si512(words.word[w]), _mm512_set1_epi16(int16_t(uint16_t(dropped))));
      const uint64_t places = 0x0303030303030303u << (2 * w);
      low |= _pdep_u64(kept_bits & 0xffff, places);
      high |= _pdep_u64(kept_bits >> 16, places);
    }
    const __m512 all = _mm512_set1_ps(kept);
    for (int v = 0; v < 8; ++v)
      _mm512_storeu_ps(factors + 16 * v, _mm512_maskz_mov_ps(__mmask16((v < 4 ? low : high) >> (16 * (v % 4))), all));
    return;
  }
#endif
  for (int i = 0; i < philox_calls; ++i)
    for (int w = 0; w < 4; ++w) {
      factors[8 * i + 2 * w] = int32_t(words.word[w][i] & 0xffff) >= dropped ? kept : A(0);
      factors[8 * i + 2 * w + 1] = int32_t(words.word[w][i] >> 16) >= dropped ? kept : A(0);
    }
}

// The same with the calls inside: factors[16 j + i].
template <class A>
inline void factors_by_choice(const PhiloxWords& words, int32_t dropped, A kept, A* factors) {
  for (int w = 0; w < 4; ++w) {
    A *even = factors + 2 * w * philox_calls, *odd = even + philox_calls;
    for (int i = 0; i < philox_calls; ++i) {
      even[i] = int32_t(words.word[w][i] & 0xffff) >= dropped ? kept : A(0);
      odd[i] = int32_t(words.word[w][i] >> 16) >= dropped ? kept : A(0);
    }
  }
}

}  // namespace fastdl
