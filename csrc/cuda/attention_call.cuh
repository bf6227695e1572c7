// Where the rows of a block of attention stand: its sequence, and which keys a query may see.
#pragma once

#include "attention.h"
#include "device.cuh"

namespace fastdl::cuda {

using device::bfloat16_bits;
using device::half_bits;

// Columns [low, high] of a row that may be seen.
struct Span {
  int low, high;

  __device__ bool holds(int column) const { return column >= low && column <= high; }
};

// Row i stands at i + shift among the columns, and sees from `left` before to `right` after; negative is no limit.
struct Window {
  int64_t left, right, shift;
  int columns;

  __device__ Span span_of(int row) const {
    const int64_t at = row + shift;
    const int64_t low = left < 0 ? 0 : at - left, high = right < 0 ? columns - 1 : at + right;
    return {int(low < 0 ? 0 : low > columns ? columns : low), int(high < -1 ? -1 : high >= columns ? columns - 1 : high)};
  }
  // The same relation from the other side: which of `rows` rows see a column.
  __device__ Window turned(int rows) const { return {right, left, -shift, rows}; }
};

// A sample, or a sequence of the one sample.
struct Place {
  int64_t sample, first_query, first_key;
  int length, keys;
  uint32_t sequence;  // as dropout counts it
  Window window;
};

__device__ __forceinline__ int64_t integer_at(const AttentionIntegers& integers, int64_t i) {
  const int64_t at = i * integers.stride;
  return integers.wide ? static_cast<const int64_t*>(integers.values)[at]
                       : int64_t(static_cast<const int32_t*>(integers.values)[at]);
}

__device__ __forceinline__ int64_t limited(int64_t number, int64_t low, int64_t high) {
  return number < low ? low : number > high ? high : number;
}

__device__ __forceinline__ Place place_of(const Attention& call, int64_t index) {
  Place place{
      index, 0, 0, int(call.length), int(call.keys), uint32_t(index), {call.window_left, call.window_right, call.offset, 0}};
  if (call.starts_q.values) {
    // Nobody has checked what the starts hold; nothing outside of the tensors is touched whatever they are.
    place.sample = 0;
    place.first_query = limited(integer_at(call.starts_q, index), 0, call.length);
    place.first_key = limited(integer_at(call.starts_k, index), 0, call.keys);
    place.length = int(limited(integer_at(call.starts_q, index + 1), place.first_query, call.length) - place.first_query);
    place.keys = int(limited(integer_at(call.starts_k, index + 1), place.first_key, call.keys) - place.first_key);
  } else if (call.query_offset.values) {
    constexpr int64_t far = int64_t(1) << 60;
    place.window.shift += limited(integer_at(call.query_offset, index), -far, far);
  }
  place.window.columns = place.keys;
  return place;
}

// Values of head `head` from row `row` on.
template <class T>
__device__ __forceinline__ T* rows_of(const AttentionTensor& tensor, int64_t sample, int64_t head, int64_t row) {
  return static_cast<T*>(tensor.values) + sample * tensor.sample + head * tensor.head + row * tensor.row;
}

// The number of a query in (N, H, L).
__device__ __forceinline__ int64_t row_number(const Attention& call, const Place& place, int64_t head, int64_t query) {
  return (place.sample * call.heads + head) * call.length + place.first_query + query;
}

inline constexpr float log2_e = 1.44269504088896341f;
// What the exponents of a call are measured in. Half precision takes them to base 2, which saves a multiplication a score; in
// float32 they are natural, since rounding x log2 e costs |x| 2^-24 of relative error.
template <class T>
inline constexpr float exponent_unit = sizeof(T) == 2 ? log2_e : 1.0f;

template <class T>
__device__ __forceinline__ float power(float exponent) {
  return sizeof(T) == 2 ? device::exp2_approx(exponent) : expf(exponent);
}

}  // namespace fastdl::cuda
