// What dropout's kernels are handed, and how their threads choose and apply.
#pragma once

#include <type_traits>

#include "elements.cuh"
#include "philox.cuh"

namespace fastdl::cuda {
namespace dropout {

inline constexpr int threads = 256;
// Vectors of 16 bytes that a thread of the kernels over contiguous values has under way at a time.
inline constexpr int vectors = 4;
template <class T>
inline constexpr int block_values = threads * vectors * full_vector<T>;

struct Call {
  const void *input, *residual;
  void* output;
  uint64_t seed;
  const int64_t* seed_on_device;
  uint32_t threshold;  // of 2^32: a level below is dropped
  float scale;         // of what is kept
  int64_t first_block;
  int64_t values, lines, width, channels;
  uint32_t octets;                  // calls of Philox along a line
  uint32_t step_rows, step_octets;  // of as many octets as a block has threads
  bool narrow;                      // all numbers of values fit 32 bits
};

// A division of 64 bits takes as long as a call of Philox.
__device__ __forceinline__ int64_t divide(const Call& call, int64_t number, int64_t by) {
  return call.narrow ? int64_t(uint32_t(number) / uint32_t(by)) : number / by;
}

struct Key {
  uint32_t low, high;
};

__device__ __forceinline__ Key key_of(const Call& call) {
  const uint64_t seed = call.seed_on_device ? uint64_t(*call.seed_on_device) : call.seed;
  return {uint32_t(seed), uint32_t(seed >> 32)};
}

// The words that decide for values [8 octet, 8 octet + 8) of a row.
__device__ __forceinline__ void choose(const Key& key, uint32_t octet, int64_t row, uint32_t (&words)[4]) {
  words[0] = octet;
  words[1] = uint32_t(row);
  words[2] = uint32_t(uint64_t(row) >> 32);
  words[3] = 0;
  philox<10>(words, key.low, key.high);
}

// Choice i of a call. The level is compared where it lies, in the upper half of its word: what is below it there is less than one
// level. Of levels that are all dropped the threshold has overflowed to 0; their scale is 0 as well.
__device__ __forceinline__ bool is_kept(const uint32_t (&words)[4], int i, uint32_t threshold) {
  return (i % 2 == 0 ? words[i / 2] << 16 : words[i / 2]) >= threshold;
}

// All choices of a call: bit i is choice i.
__device__ __forceinline__ uint32_t kept_bits(const uint32_t (&words)[4], uint32_t threshold) {
  uint32_t bits = 0;
#pragma unroll
  for (int i = 0; i < 8; ++i) bits |= uint32_t(is_kept(words, i, threshold)) << i;
  return bits;
}

// V values as they are held in registers.
template <class T, int V>
using Held = std::conditional_t<sizeof(T) == 2 && V != 1, device::Vector<uint32_t, V == 1 ? 1 : V / 2>, Pack<T, V>>;

template <class T, int V>
__device__ __forceinline__ Held<T, V> load(const T* from) {
  // Single values of one sector are read by several instructions, so they pass through the first-level cache.
  constexpr auto cache = V == 1 ? device::Cache::read_only : device::Cache::read_only_streaming;
  return device::load_vector<Held<T, V>, cache>(from);
}

template <class T, int V>
__device__ __forceinline__ void store(T* to, const Held<T, V>& held) {
  // With a policy the store is one instruction by construction; the compiler has split the plain one into words.
  if constexpr (V == 1) device::store_vector(to, held);
  else device::store_vector<device::Cache::evict_first>(to, held);
}

// Two values of 16 bits of a word. Vectors are held as words and taken apart when their choices are there: taken apart as they come
// they would hold twice the registers all the time that the choices take.
template <class T>
__device__ __forceinline__ void widen_pair(uint32_t word, float& low, float& high) {
  if constexpr (std::is_same_v<T, bfloat16_bits>) {
    low = device::reinterpret<float>(word << 16);
    high = device::reinterpret<float>(word & 0xffff0000u);
  } else {
    low = device::widen(T{uint16_t(word)});
    high = device::widen(T{uint16_t(word >> 16)});
  }
}

template <class T, int V>
__device__ __forceinline__ void widen_all(const Held<T, V>& held, float (&values)[V]) {
#pragma unroll
  for (int i = 0; i < V; ++i) {
    if constexpr (sizeof(T) == 4 || V == 1) values[i] = device::widen(held[i]);
    else if (i % 2 == 0) widen_pair<T>(held[i / 2], values[i], values[i + 1]);
  }
}

// input * factor + residual; a product, so that NaN and infinity go through where they are dropped.
template <bool has_residual, class T, int V, class Kept>
__device__ __forceinline__ Held<T, V> apply(const Held<T, V>& input, const Held<T, V>& residual, float scale, Kept kept) {
  float values[V], added[V];
  widen_all<T, V>(input, values);
  if constexpr (has_residual) widen_all<T, V>(residual, added);
#pragma unroll
  for (int i = 0; i < V; ++i) {
    const float factor = kept(i) ? scale : 0.0f;
    values[i] = has_residual ? fmaf(values[i], factor, added[i]) : values[i] * factor;
  }
  Held<T, V> result;
#pragma unroll
  for (int i = 0; i < V; ++i) {
    if constexpr (sizeof(T) == 4 || V == 1) result[i] = device::narrow<T>(values[i]);
    else if (i % 2 == 0) result[i / 2] = device::narrow_pair<T>(values[i], values[i + 1]);
  }
  return result;
}

}  // namespace dropout
}  // namespace fastdl::cuda
