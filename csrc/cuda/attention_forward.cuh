// Attention's forward by mma: a warp holds 16 queries, whose weights stay in its registers between the two products.
#pragma once

#include <type_traits>

#include "attention_forward.h"
#include "attention_sizes.h"
#include "attention_softmax.cuh"

namespace fastdl::cuda {

// A row of a block: its query, and its head.
struct QueryRow {
  int query, head;
};

__device__ __forceinline__ QueryRow query_row(const AttentionForward& call, int head, int64_t index) {
  if (call.packed == 1) return {int(index), head};
  return {int(index / call.packed), head * call.packed + int(index % call.packed)};
}

// The block's sequence, head (of the keys, if packed), tile of rows and part of the keys.
struct ForwardBlock {
  Place place;
  int head, split;
  int64_t first_row, rows;
  Span keys;   // that any of the rows may see, and this part has
  Span whole;  // that each of the rows may see

  template <int tile_rows, int columns>
  __device__ static ForwardBlock of(const AttentionForward& call) {
    int64_t index = call.first_block + blockIdx.x;
    ForwardBlock block{};
    // The last tiles come first: under a causal mask they take longest.
    const int64_t tile = call.tiles - 1 - index % call.tiles;
    index /= call.tiles;
    block.split = int(index % call.splits);
    index /= call.splits;
    const int64_t heads = call.attention.heads / call.packed;
    block.head = int(index % heads);
    block.place = place_of(call.attention, index / heads);
    block.rows = int64_t(block.place.length) * call.packed;
    block.first_row = tile * tile_rows;
    if (block.first_row >= block.rows) return block;
    const int64_t end = block.first_row + tile_rows < block.rows ? block.first_row + tile_rows : block.rows;
    const Span first = block.place.window.span_of(query_row(call, 0, block.first_row).query),
               last = block.place.window.span_of(query_row(call, 0, end - 1).query);
    block.keys = {first.low, last.high};  // both limits rise with the row
    block.whole = {last.low, first.high};
    if (call.splits > 1 && block.keys.low <= block.keys.high) {
      const int begin = block.keys.low / columns, steps = block.keys.high / columns + 1 - begin;
      const int share = (steps + call.splits - 1) / call.splits, from = begin + block.split * share;
      block.keys.low = max(block.keys.low, from * columns);
      block.keys.high = min(block.keys.high, (from + share) * columns - 1);
    }
    return block;
  }
};

// What is asked of a row where scores are masked or dropped. It lies in shared memory, since most steps do neither, and registers
// are few.
struct RowFacts {
  int query, head;
  Span keys;

  __device__ static RowFacts of(const AttentionForward& call, const ForwardBlock& block, int row) {
    const int64_t index = block.first_row + row;
    const QueryRow at = query_row(call, block.head, index < block.rows ? index : block.rows - 1);
    return {at.query, at.head, index < block.rows ? block.place.window.span_of(at.query) : Span{0, -1}};
  }
};

// The scores of one step become weights. Gives by what the sum of the steps before must be multiplied, and whether it must.
template <class T, int count>
__device__ __forceinline__ bool weigh_step(const AttentionForward& call, const ForwardBlock& block, Span whole,
                                           const RowFacts* facts, const Dropout& dropout, int first_key, Softmax<T>& softmax,
                                           float (&s)[count][4], float (&correction)[2]) {
  const Attention& attention = call.attention;
  scale_scores<T, count, false>(attention, s, s);
  const bool all = whole.low <= first_key && first_key + 8 * count - 1 <= whole.high;
  if (!all || has_mask(attention)) {
    const RowFacts rows[2] = {facts[0], facts[8]};
    const Span spans[2] = {rows[0].keys, rows[1].keys};
    MaskRows mask{{}, attention.mask.column};
#pragma unroll
    for (int i = 0; i < 2; ++i) mask.rows[i] = mask_row(attention, block.place.sample, rows[i].head, rows[i].query, 0);
    mask_scores<T>(attention, s, spans, mask, first_key);
  }
  const bool changed = softmax.weigh(s, correction);
  if (dropout.dropped) {
    const int queries[2] = {facts[0].query, facts[8].query}, heads[2] = {facts[0].head, facts[8].head};
    constexpr int at_once = count % 8 == 0 ? 8 : count < 8 ? count : 4;  // 32 choices a thread at most
#pragma unroll
    for (int n = 0; n < count; n += at_once)
      drop(reinterpret_cast<float (&)[at_once][4]>(s[n]),
           kept_of_queries<at_once>(dropout, queries, heads, block.place.sequence, first_key + 8 * n));
  }
  return changed;
}

// Writes W features of the rows that a thread's quad has finished. `stage`: 16 rows of the warp's own in shared memory.
template <class T, int W>
__device__ __forceinline__ void store_output(const AttentionForward& call, const ForwardBlock& block, const Dropout& dropout,
                                             const Softmax<T>& softmax, int warp_row, float (&output)[W / 8][4], T* stage) {
  const Attention& attention = call.attention;
  const int lane = int(threadIdx.x % 32), g = lane / 4, t = lane % 4;
  float factor[2], log_sum[2];
  softmax.finish(factor, log_sum);
  if (dropout.dropped) {
    factor[0] *= dropout.scale;
    factor[1] *= dropout.scale;
  }
  const int64_t warp_first = block.first_row + warp_row;
  if (call.splits > 1) {
    const int64_t rows = attention.samples * attention.heads * attention.length;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int64_t index = warp_first + g + 8 * i;
      if (index >= block.rows) continue;
      const QueryRow row = query_row(call, block.head, index);
      const int64_t at = block.split * rows + row_number(attention, block.place, row.head, row.query);
      if (t == 0) call.partial_log_sum[at] = log_sum[i];
#pragma unroll
      for (int n = 0; n < W / 8; ++n)
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          const int feature = call.first_feature + 8 * n + 2 * t + e;
          if (feature < attention.value_features)
            call.partial_output[at * attention.value_features + feature] = output[n][2 * i + e] * factor[i];
        }
    }
    return;
  }
  if (t == 0) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int64_t index = warp_first + g + 8 * i;
      if (index >= block.rows) continue;
      const QueryRow row = query_row(call, block.head, index);
      call.log_sum.values[block.place.sample * call.log_sum.sample + row.head * call.log_sum.head +
                          (block.place.first_query + row.query) * call.log_sum.row] = log_sum[i];
    }
  }
  store_rows<T, W>(stage, output, factor[0], factor[1], attention.value_features - call.first_feature, call.output,
                   [&](int i) -> T* {
                     if (warp_first + i >= block.rows) return nullptr;
                     const QueryRow row = query_row(call, block.head, warp_first + i);
                     return rows_of<T>(call.output, block.place.sample, row.head, block.place.first_query + row.query) +
                            call.first_feature * call.output.column;
                   });
}

namespace attention_forward_mma {

template <class T, int D>
inline constexpr AttentionSizes sizes = attention_forward_sizes(sizeof(T) == 4, D);

template <class T, int D>
inline constexpr size_t shared_bytes = attention_tile_bytes(sizeof(T) == 4, D, sizes<T, D>.rows + 2 * sizes<T, D>.columns);

template <class T, int D>
__global__ void __launch_bounds__(sizes<T, D>.threads, sizeof(T) == 2 && D <= 64 ? 3 : 2) kernel(const AttentionForward call) {
  constexpr int rows = sizes<T, D>.rows, columns = sizes<T, D>.columns, threads = sizes<T, D>.threads;
  DYNAMIC_SHARED(unsigned char, shared);
  T *const queries = reinterpret_cast<T*>(shared), *const keys = queries + rows * pitch<T, D>,
           *const values = keys + columns * pitch<T, D>;
  const Attention& attention = call.attention;
  // In shared memory, so that what is read once a step takes no registers.
  STATIC_SHARED(ForwardBlock, block);
  if (threadIdx.x == 0) block = ForwardBlock::of<rows, columns>(call);
  device::block_barrier();
  if (block.first_row >= block.rows) return;
  const int warp_row = int(threadIdx.x) / 32 * 16;
  const int64_t key_head = block.head / (attention.heads / call.packed / attention.key_heads);
  const Rows<T> key_rows{rows_of<const T>(attention.key, block.place.sample, key_head, block.place.first_key), attention.key.row,
                         block.place.keys};
  const Rows<T> value_rows{rows_of<const T>(attention.value, block.place.sample, key_head, block.place.first_key),
                           attention.value.row, block.place.keys};
  const auto load = [&](T* tile, const AttentionTensor& tensor, const Rows<T>& from, int features, int first) {
    load_tile<T, columns, D, threads>(tile, features, tensor.column, tensor.vector,
                                      [&](int row) { return from(row < 0 ? row : first + row); });
    device::cp_async_commit();
  };
  const int first = block.keys.low / columns * columns;
  if (block.keys.low <= block.keys.high) {
    load_tile<T, rows, D, threads>(
        queries, attention.features, attention.query.column, attention.query.vector, [&](int row) -> const T* {
          const int64_t index = block.first_row + (row < 0 ? 0 : row);
          if (index >= block.rows) return nullptr;
          const QueryRow at = query_row(call, block.head, index);
          return rows_of<const T>(attention.query, block.place.sample, at.head, block.place.first_query + at.query);
        });
    load(keys, attention.key, key_rows, attention.features, first);
  }

  STATIC_SHARED(RowFacts, facts, [rows]);
  if (threadIdx.x < rows) facts[threadIdx.x] = RowFacts::of(call, block, int(threadIdx.x));
  const Dropout dropout = dropout_of(attention);
  Softmax<T> softmax;
  constexpr int W = summed<T, D>;
  float output[W / 8][4];
  clear(output);
#pragma unroll 1
  for (int at = first; at <= block.keys.high; at += columns) {
    device::cp_async_wait<0>();
    device::block_barrier();  // keys have come, and the values of the step before were read
    load(values, attention.value, value_rows, attention.value_features, at);
    float s[columns / 8][4];
    clear(s);
    multiply_rows<T, D, columns>(s, queries + warp_row * pitch<T, D>, keys);
    float correction[2];
    if (weigh_step<T>(call, block, block.whole, facts + warp_row + threadIdx.x % 32 / 4, dropout, at, softmax, s, correction))
      rescale(output, correction);
    device::cp_async_wait<0>();
    device::block_barrier();  // values have come, and the keys were read
    if (at + columns <= block.keys.high) load(keys, attention.key, key_rows, attention.features, at + columns);
    multiply_weights<T, D, columns, W>(output, s, values + call.first_feature);
  }
  store_output<T, W>(call, block, dropout, softmax, warp_row, output, queries + warp_row * pitch<T, D>);
}

template <class T, int D>
int launch(AttentionForward call, unsigned blocks, void* stream) {
  int status = 0;
  for (call.first_feature = 0; call.first_feature < call.attention.value_features && status == 0;
       call.first_feature += summed<T, D>)
    status = device::launch(kernel<T, D>, dim3(blocks), dim3(sizes<T, D>.threads), shared_bytes<T, D>,
                            static_cast<device::Stream>(stream), call);
  return status;
}

template <class T>
int launch_by_width(const AttentionForward& call, unsigned blocks, void* stream) {
  const int features =
      call.attention.features > call.attention.value_features ? call.attention.features : call.attention.value_features;
  switch (attention_width(call.attention.dtype, features)) {
    case 64: return launch<T, 64>(call, blocks, stream);
    case 128: return launch<T, 128>(call, blocks, stream);
    case 256: return launch<T, 256>(call, blocks, stream);
  }
  if constexpr (sizeof(T) == 2) {
    switch (attention_width(call.attention.dtype, features)) {
      case 32: return launch<T, 32>(call, blocks, stream);
      case 96: return launch<T, 96>(call, blocks, stream);
      case 192: return launch<T, 192>(call, blocks, stream);
    }
  }
  return 1;
}

}  // namespace attention_forward_mma
}  // namespace fastdl::cuda
