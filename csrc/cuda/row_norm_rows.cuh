// What the kernels of a row normalisation are handed, and how a thread finds, loads and adds up the values of its rows.
#pragma once

#include <type_traits>

#include "elements.cuh"
#include "norm_call.h"
#include "row_norm_plan.h"

namespace fastdl::cuda {

struct RowNormCall {
  int64_t rows, inner, width;
  bool few_rows;  // their number fits 32 bits
  int team_bits;
  float eps;
  RowTensor input, other, sum_gradient;  // other: the residual, or in backward the output's gradient
  const void *weight, *bias;
  bool wide_weight, wide_bias;  // in float32
  void *output, *sum;           // output: in backward the input's gradient; may be null there
  float* statistics;
  ChannelSums* sums;  // backward: (sum_rows, width), null where no parameter's gradient is wanted
  float* lows;        // backward of streamed rows of layer norm, see Centre
};

// Where row `row` of a tensor begins. A division of 64 bits takes longer than all else that is done to a short row.
template <class T>
__device__ __forceinline__ const T* row_of(const RowNormCall& call, const RowTensor& tensor, int64_t row) {
  const T* const values = static_cast<const T*>(tensor.values);
  if (call.inner == call.rows) return values + row * tensor.strides.inner;
  const int64_t outer = call.few_rows ? int64_t(unsigned(row) / unsigned(call.inner)) : row / call.inner;
  return values + outer * tensor.strides.outer + (row - outer * call.inner) * tensor.strides.inner;
}

// The threads that have a row together: 2^bits lanes of a warp, or a block.
template <bool block>
struct Team {
  int size, lane, index, count;  // index: among the teams of the block, which are `count`
  int phase = 0;

  __device__ __forceinline__ explicit Team(int bits)
      : size(block ? int(blockDim.x) : 1 << bits),
        lane(block ? int(threadIdx.x) : int(threadIdx.x) & (size - 1)),
        index(block ? 0 : int(threadIdx.x) >> bits),
        count(block ? 1 : int(blockDim.x) >> bits) {}

  static constexpr int most_warps = 16;

  // Every thread comes, and has the sums over its team: the same bits in each.
  template <int sums_count>
  __device__ __forceinline__ void add(float (&sums)[sums_count]) {
    if constexpr (!block) {
      for (int distance = size / 2; distance > 0; distance /= 2) add_lanes(sums, distance);
    } else {
      // Two arrays by turns: when one is written again, a barrier lies behind all that read it.
      STATIC_SHARED(float, partial, [2][sums_count][most_warps]);
      const int warp = int(threadIdx.x) / 32, warp_lane = int(threadIdx.x) % 32, from = warp_lane % most_warps, warps = size / 32;
#pragma unroll
      for (int distance = 16; distance > 0; distance /= 2) add_lanes(sums, distance);
      if (warp_lane == 0)
        for (int i = 0; i < sums_count; ++i) partial[phase][i][warp] = sums[i];
      device::block_barrier();
      for (int i = 0; i < sums_count; ++i) sums[i] = from < warps ? partial[phase][i][from] : 0.0f;
#pragma unroll
      for (int distance = most_warps / 2; distance > 0; distance /= 2) add_lanes(sums, distance);
      phase ^= 1;
    }
  }

 private:
  template <int sums_count>
  __device__ __forceinline__ static void add_lanes(float (&sums)[sums_count], int distance) {
#pragma unroll
    for (int i = 0; i < sums_count; ++i) sums[i] += device::shuffle_xor(sums[i], distance);
  }
};

// V values of a row that nothing writes while the kernel runs.
template <class T, int V>
__device__ __forceinline__ Pack<T, V> load(const T* from) {
  // Single values of one sector are read by several instructions, so they pass through the first-level cache.
  return device::load_vector<Pack<T, V>, V == 1 ? device::Cache::read_only : device::Cache::read_only_streaming>(from);
}

template <class T, int V>
__device__ __forceinline__ void store(T* to, const Pack<T, V>& pack) {
  // With a policy the store is one instruction by construction; the compiler has split the plain one into words.
  if constexpr (V == 1) device::store_vector(to, pack);
  else device::store_vector<device::Cache::evict_first>(to, pack);
}

template <class T, int V>
__device__ __forceinline__ Pack<T, V> add(const Pack<T, V>& a, const Pack<T, V>& b) {
  Pack<T, V> sum;
#pragma unroll
  for (int i = 0; i < V; ++i) sum[i] = device::narrow<T>(device::widen(a[i]) + device::widen(b[i]));
  return sum;
}

// Values [column, column + V) of a parameter; `otherwise` where there is none.
template <class T, int V>
__device__ __forceinline__ void load_parameter(const void* values, bool wide, int64_t column, float otherwise, float (&to)[V]) {
  if (!values) {
#pragma unroll
    for (int i = 0; i < V; ++i) to[i] = otherwise;
  } else if (std::is_same_v<T, float> || wide) {
    constexpr int width = V < 4 ? V : 4;
#pragma unroll
    for (int first = 0; first < V; first += width) {
      const auto pack =
          device::load_vector<Pack<float, width>, device::Cache::read_only>(static_cast<const float*>(values) + column + first);
#pragma unroll
      for (int i = 0; i < width; ++i) to[first + i] = pack[i];
    }
  } else {
    const auto pack = device::load_vector<Pack<T, V>, device::Cache::read_only>(static_cast<const T*>(values) + column);
#pragma unroll
    for (int i = 0; i < V; ++i) to[i] = device::widen(pack[i]);
  }
}

// What a row is normalised by. One float32 mean is off by 5e-4 at 1e4: `low` is what it lacks, the mean of value - mean, which a
// second sum over the row gives along with the others.
struct Centre {
  float mean, low, scale;

  __device__ __forceinline__ float operator()(float value) const { return (value - mean - low) * scale; }
};

}  // namespace fastdl::cuda
