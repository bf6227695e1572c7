// Tiles of attention's operands in shared memory: rows of D values, loaded in 16-byte pieces where strides allow it.
#pragma once

#include "attention_call.cuh"

namespace fastdl::cuda {

// The distance of rows in shared memory. An odd number of 16-byte pieces puts eight rows in a row on different banks.
template <class T, int D>
inline constexpr int pitch = D + 16 / int(sizeof(T));

// Starts the copy of `rows` rows; those for which row_at(row) is null, and what lies beyond `features`, become zero. Complete after
// cp_async_wait and a barrier.
template <class T, int rows, int D, int threads, class RowAt>
__device__ __forceinline__ void load_tile(T* tile, int features, int64_t column, bool vector, RowAt row_at) {
  constexpr int count = 16 / sizeof(T), pieces = D / count;
  if (vector) {
#pragma unroll 4
    for (int i = int(threadIdx.x); i < rows * pieces; i += threads) {
      const int row = i / pieces, first = i % pieces * count;
      const T* const from = row_at(row);
      const int left = from ? features - first : 0, bytes = left <= 0 ? 0 : left < count ? left * int(sizeof(T)) : 16;
      device::cp_async<16>(tile + row * pitch<T, D> + first, bytes ? from + first : row_at(-1), bytes);
    }
    return;
  }
#pragma unroll 1
  for (int i = int(threadIdx.x); i < rows * pieces; i += threads) {
    const int row = i / pieces, first = i % pieces * count;
    const T* const from = row_at(row);
    const int left = from ? features - first : 0;
    device::Vector<T, count> piece;
#pragma unroll
    for (int j = 0; j < count; ++j)
      piece[j] = j < left ? device::load_vector<T, device::Cache::read_only>(from + (first + j) * column) : device::narrow<T>(0.0f);
    device::store_vector(tile + row * pitch<T, D> + first, piece);
  }
}

// `count` rows of one head, the first of which is at `from`; row_at(-1) is any address that may be named.
template <class T>
struct Rows {
  const T* from;
  int64_t stride;
  int count;

  __device__ const T* operator()(int row) const { return row < 0 ? from : row < count ? from + row * stride : nullptr; }
};

// 16 rows of a warp's accumulators, times a factor a row, through `stage` (16 rows of the warp's own) to global memory.
// row_at(row) is null where there is nothing to write.
template <class T, int D, class RowAt>
__device__ __forceinline__ void store_rows(T* stage, const float (&values)[D / 8][4], float first_factor, float second_factor,
                                           int features, const AttentionTensor& like, RowAt row_at) {
  constexpr int count = 16 / sizeof(T), pieces = D / count;
  const int lane = int(threadIdx.x % 32), g = lane / 4, t = lane % 4;
  device::warp_barrier();
#pragma unroll
  for (int n = 0; n < D / 8; ++n)
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const float factor = half ? second_factor : first_factor;
      device::Vector<T, 2> pair;
      pair[0] = device::narrow<T>(values[n][2 * half] * factor);
      pair[1] = device::narrow<T>(values[n][2 * half + 1] * factor);
      device::store_vector(stage + (g + 8 * half) * pitch<T, D> + 8 * n + 2 * t, pair);
    }
  device::warp_barrier();
#pragma unroll 1
  for (int i = lane; i < 16 * pieces; i += 32) {
    const int row = i / pieces, first = i % pieces * count;
    T* const to = row_at(row);
    if (!to || first >= features) continue;
    const auto piece = device::load_vector<device::Vector<T, count>>(stage + row * pitch<T, D> + first);
    if (like.vector && first + count <= features) {
      device::store_vector<device::Cache::evict_first>(to + first, piece);
    } else {
#pragma unroll
      for (int j = 0; j < count; ++j)
        if (first + j < features) to[(first + j) * like.column] = piece[j];
    }
  }
}

}  // namespace fastdl::cuda
