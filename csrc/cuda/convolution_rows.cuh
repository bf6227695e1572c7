// How rows and columns of a channels-last tensor are shared out over blocks, and moved in pieces of 16 bytes.
#pragma once

#include <algorithm>
#include <limits>
#include <type_traits>

#include "convolution_prologue.cuh"
#include "norm_launch.cuh"
#include "norm_plan.h"

namespace fastdl::cuda {

inline constexpr int convolution_threads = 256;
inline constexpr int invalid_convolution = 1;  // cudaErrorInvalidValue

// The rows of one block, which are of one segment.
struct BlockRows {
  int64_t segment, begin, end;
};

__device__ __forceinline__ BlockRows rows_of_block(const RowShare& share, int64_t block) {
  const int64_t segment = block / share.blocks_per_segment;
  const int64_t first = block % share.blocks_per_segment * share.rows_per_block;
  const int64_t left = share.segment_rows - first, rows = left < share.rows_per_block ? left : share.rows_per_block;
  const int64_t begin = segment * share.segment_rows + first;
  return {segment, begin, begin + rows};
}

// `rows` rows in as many blocks as keep the machine busy, each of whole tiles and of `most_tiles` of them at most; with `by_sample`
// no block has rows of two samples.
inline RowShare share_rows(int64_t samples, int64_t positions, bool by_sample, int64_t tile, int64_t column_blocks,
                           int64_t most_tiles, const Target& target) {
  RowShare share;
  share.segments = by_sample ? samples : 1;
  share.segment_rows = by_sample ? positions : samples * positions;
  const int64_t tiles = divide_up(share.segment_rows, tile);
  // Eight blocks a multiprocessor: several at a time, and a few in turn to even out their ends.
  const int64_t wanted = divide_up(int64_t(8) * target.multiprocessors, column_blocks * share.segments);
  const int64_t tiles_per_block = std::clamp<int64_t>(tiles / std::max<int64_t>(wanted, 1), 1, most_tiles);
  share.rows_per_block = tiles_per_block * tile;
  share.blocks_per_segment = divide_up(share.segment_rows, share.rows_per_block);
  return share;
}

// 2^bits vectors of channels beside each other in a block: whole lines of 128 bytes where there are as many channels.
inline int vector_bits_of(int64_t vectors, bool vector) {
  const int most = vector ? 3 : 5;
  int bits = 0;
  while (bits < most && (int64_t(1) << bits) < vectors) ++bits;
  return bits;
}

// Starts the copy of a piece to shared memory, of which `left` values are there; the rest becomes zero. With `vector` pieces are
// whole or not there at all. Complete, for this thread, after cp_async_wait.
template <class T>
__device__ __forceinline__ void copy_piece(T* to, const T* from, int64_t left, bool vector, const T* any) {
  constexpr int count = full_vector<T>;
  if (vector) return device::cp_async<16>(to, left > 0 ? from : any, left > 0 ? 16 : 0);
  // A loop, as unrolled it took the registers of the product around it.
#pragma unroll 1
  for (int i = 0; i < count; ++i)
    to[i] = i < left ? device::load_vector<T, device::Cache::read_only>(from + i) : device::narrow<T>(0.0f);
}

// V values, of which `left` are there.
template <class T, int V>
__device__ __forceinline__ void load_values(const T* from, int64_t left, bool vector, float (&values)[V]) {
  if (vector || V == 1) {
#pragma unroll
    for (int i = 0; i < V; ++i) values[i] = 0.0f;
    if (left <= 0) return;
    const auto pack = device::load_vector<Pack<T, V>, device::Cache::read_only>(from);
#pragma unroll
    for (int i = 0; i < V; ++i) values[i] = device::widen(pack[i]);
    return;
  }
#pragma unroll
  for (int i = 0; i < V; ++i)
    values[i] = i < left ? device::widen(device::load_vector<T, device::Cache::read_only>(from + i)) : 0.0f;
}

template <class T, int V>
__device__ __forceinline__ void store_values(T* to, const float (&values)[V], int left, bool vector) {
  if (vector || V == 1) {
    if (left > 0) store(to, values, 0, V);
    return;
  }
#pragma unroll
  for (int i = 0; i < V; ++i)
    if (i < left) to[i] = device::narrow<T>(values[i]);
}

// V floats in shared memory, at a multiple of 16 bytes where there are as many.
template <int V>
__device__ __forceinline__ void load_floats(const float* from, float (&values)[V]) {
  constexpr int width = V % 4 == 0 ? 4 : 1;
#pragma unroll
  for (int i = 0; i < V; i += width) {
    const auto some = device::load_vector<Pack<float, width>>(from + i);
#pragma unroll
    for (int j = 0; j < width; ++j) values[i + j] = some[j];
  }
}

// launch(kernel_of(Type<T>), ...) for the call's dtype, over `blocks` blocks.
template <class F, class... Rest>
int launch_convolution(Dtype dtype, int64_t blocks, int threads, size_t shared_bytes, void* stream, F kernel_of,
                       const Rest&... arguments) {
  if (blocks > std::numeric_limits<int32_t>::max()) return invalid_convolution;  // more rows than any memory holds
  const auto run = [&](auto type) {
    return device::launch(kernel_of(type), dim3(unsigned(blocks)), dim3(unsigned(threads)), shared_bytes,
                          static_cast<device::Stream>(stream), arguments...);
  };
  switch (dtype) {
    case Dtype::bfloat16: return run(Type<bfloat16_bits>{});
    case Dtype::float16: return run(Type<half_bits>{});
    default: return run(Type<float>{});
  }
}

}  // namespace fastdl::cuda
