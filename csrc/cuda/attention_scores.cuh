// From products of queries and keys to exponents: scale, cap, mask and window, in accumulators of one warp.
#pragma once

#include "attention_dropout.cuh"
#include "attention_products.cuh"

namespace fastdl::cuda {

// The mask beside the two rows of a thread. `step` is from one column to the next, in values.
struct MaskRows {
  const unsigned char* rows[2];
  int64_t step;
};

__device__ __forceinline__ int mask_bytes(const Attention& call) {
  return call.mask_type == AttentionMask::boolean   ? 1
         : call.mask_type == AttentionMask::float32 ? 4
         : call.dtype == Dtype::float32             ? 4
                                                    : 2;
}

// The mask of a query, from the first key on.
__device__ __forceinline__ const unsigned char* mask_row(const Attention& call, int64_t sample, int64_t head, int64_t query,
                                                         int64_t key) {
  const AttentionTensor& mask = call.mask;
  return static_cast<const unsigned char*>(mask.values) +
         (sample * mask.sample + head * mask.head + query * mask.row + key * mask.column) * mask_bytes(call);
}

// Calls with one of these look at each score.
__device__ __forceinline__ bool has_mask(const Attention& call) { return call.mask_type != AttentionMask::none; }

// s becomes scale s, or softcap tanh(scale s / softcap). In backward `slope` is the factor of gradients, and is multiplied with the
// cap's derivative.
template <class T, int count, bool with_slope>
__device__ __forceinline__ void scale_scores(const Attention& call, float (&s)[count][4], float (&slope)[count][4]) {
  if (call.softcap > 0) {
    const float factor = call.scale / call.softcap;
#pragma unroll
    for (int n = 0; n < count; ++n)
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const float capped = tanhf(s[n][e] * factor);
        s[n][e] = capped * (call.softcap * exponent_unit<T>);
        if constexpr (with_slope) slope[n][e] *= 1.0f - capped * capped;
      }
  } else {
    const float factor = call.scale * exponent_unit<T>;
#pragma unroll
    for (int n = 0; n < count; ++n)
#pragma unroll
      for (int e = 0; e < 4; ++e) s[n][e] *= factor;
  }
}

// Adds the mask, and makes -inf of what a row may not see. Nothing of the mask is read there.
template <class T, int count>
__device__ __forceinline__ void mask_scores(const Attention& call, float (&s)[count][4], const Span (&spans)[2],
                                            const MaskRows& mask, int first_column) {
  const int first = first_column + 2 * int(threadIdx.x % 4);
  const auto each = [&](auto&& f) {
    int64_t at = first * mask.step;
#pragma unroll
    for (int n = 0; n < count; ++n, at += 8 * mask.step) {
      // Or the loads of all the mask are started at once, and what is live beside them spills.
      if (count > 8 && n % 2 == 0) device::warp_barrier();
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const int column = first + 8 * n + e % 2;
        s[n][e] = spans[e / 2].holds(column) ? f(s[n][e], mask.rows[e / 2], at + e % 2 * mask.step) : -INFINITY;
      }
    }
  };
  switch (call.mask_type) {
    case AttentionMask::none: return each([](float score, const unsigned char*, int64_t) { return score; });
    case AttentionMask::boolean:
      return each([](float score, const unsigned char* row, int64_t at) { return row[at] ? score : -INFINITY; });
    case AttentionMask::as_query:
      if constexpr (sizeof(T) == 2)
        return each([](float score, const unsigned char* row, int64_t at) {
          return score + device::widen(reinterpret_cast<const T*>(row)[at]) * exponent_unit<T>;
        });
      [[fallthrough]];
    case AttentionMask::float32:
      return each([](float score, const unsigned char* row, int64_t at) {
        return score + reinterpret_cast<const float*>(row)[at] * exponent_unit<T>;
      });
  }
}

}  // namespace fastdl::cuda
