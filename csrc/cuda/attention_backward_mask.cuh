// The gradient of an additive mask: a block holds a tile of the mask, and goes over whatever the mask was broadcast to.
#pragma once

#include "attention_backward_query.cuh"

namespace fastdl::cuda {
namespace attention_backward_mask {

template <class T, int D>
__global__ void __launch_bounds__(backward_sizes<T, D>.threads, 2) kernel(const AttentionBackward call) {
  constexpr int rows = backward_sizes<T, D>.rows, columns = backward_sizes<T, D>.columns, threads = backward_sizes<T, D>.threads;
  constexpr int count = columns / 8, warps = threads / 32;
  DYNAMIC_SHARED(unsigned char, shared);
  STATIC_SHARED(float, joined, [warps][columns]);
  T *const queries = reinterpret_cast<T*>(shared), *const grad_outputs = queries + rows * pitch<T, D>,
           *const keys = grad_outputs + rows * pitch<T, D>, *const values = keys + columns * pitch<T, D>;
  const Attention& attention = call.attention;
  const int length = int(attention.length), key_count = int(attention.keys);
  const bool all_samples = attention.mask_sizes[0] == 1, all_heads = attention.mask_sizes[1] == 1,
             all_rows = attention.mask_sizes[2] == 1, all_columns = attention.mask_sizes[3] == 1;
  const int column_tiles = (key_count + columns - 1) / columns, row_tiles = (length + rows - 1) / rows;
  // The block's place in the mask.
  int64_t index = call.first_block + blockIdx.x;
  const auto next = [&](bool all, int64_t size) {
    if (all) return int64_t(0);
    const int64_t at = index % size;
    index /= size;
    return at;
  };
  const int column_tile = int(next(all_columns, column_tiles)), row_tile = int(next(all_rows, row_tiles));
  const int own_head = int(next(all_heads, attention.heads));
  const int64_t own_sample = index;

  const int warp = int(threadIdx.x) / 32, warp_row = 16 * warp, g = int(threadIdx.x % 32) / 4, t = int(threadIdx.x % 4);
  const Dropout dropout = dropout_of(attention);
  float sum[count][4];
  clear(sum);
  const auto load_rows = [&](T* tile, const AttentionTensor& tensor, int features, const Place& place, int head, int first) {
    const Rows<T> from{rows_of<const T>(tensor, place.sample, head, first), tensor.row, length - first};
    load_tile<T, rows, D, threads>(tile, features, tensor.column, tensor.vector, from);
  };
  const auto load_columns = [&](T* tile, const AttentionTensor& tensor, int features, const Place& place, int64_t head, int first) {
    const Rows<T> from{rows_of<const T>(tensor, place.sample, head, first), tensor.row, key_count - first};
    load_tile<T, columns, D, threads>(tile, features, tensor.column, tensor.vector, from);
  };
#pragma unroll 1
  for (int64_t sample = own_sample; sample < (all_samples ? attention.samples : own_sample + 1); ++sample) {
    const Place place = place_of(attention, sample);
#pragma unroll 1
    for (int head = own_head; head < (all_heads ? int(attention.heads) : own_head + 1); ++head) {
      const int64_t key_head = head / (attention.heads / attention.key_heads);
#pragma unroll 1
      for (int tile = row_tile; tile < (all_rows ? row_tiles : row_tile + 1); ++tile) {
        const int first_row = tile * rows;
        const Span first_span = place.window.span_of(first_row),
                   last_span = place.window.span_of(min(first_row + rows, length) - 1);
        const QueryStep step{call, place, dropout, head, first_row, rows, {last_span.low, first_span.high}};
        const int own_first = column_tile * columns, begin = all_columns ? first_span.low / columns * columns : own_first;
        const int end = all_columns ? last_span.high : min(own_first, last_span.high);
        if (begin > end || (!all_columns && own_first + columns <= first_span.low)) continue;
        device::block_barrier();  // the tiles before were read
        load_rows(queries, attention.query, attention.features, place, head, first_row);
        load_rows(grad_outputs, call.gradients.grad_output, attention.value_features, place, head, first_row);
        float log_sums[2], deltas[2];
        read_row_numbers(call, place, head, first_row + warp_row + g, log_sums, deltas);
#pragma unroll 1
        for (int at = begin; at <= end; at += columns) {
          if (at != begin) device::block_barrier();
          load_columns(keys, attention.key, attention.features, place, key_head, at);
          load_columns(values, attention.value, attention.value_features, place, key_head, at);
          device::cp_async_commit();
          device::cp_async_wait<0>();
          device::block_barrier();
          float p[count][4], gradients[count][4];
          step.template run<T, D, columns, false>(queries, grad_outputs, keys, values, warp_row, log_sums, deltas, at, p,
                                                  gradients);
#pragma unroll
          for (int n = 0; n < count; ++n)
#pragma unroll
            for (int e = 0; e < 4; ++e) sum[n][e] += gradients[n][e];
        }
      }
    }
  }

  // Sums along what the mask lacks, in a fixed order. Of columns first: the sum of a row stands in its first column then.
  if (all_columns) {
#pragma unroll
    for (int row = 0; row < 2; ++row) {
      float total = 0.0f;
#pragma unroll
      for (int n = 0; n < count; ++n) total += sum[n][2 * row] + sum[n][2 * row + 1];
      total += device::shuffle_xor(total, 1);
      sum[0][2 * row] = total + device::shuffle_xor(total, 2);
    }
  }
  if (all_rows) {
#pragma unroll
    for (int n = 0; n < count; ++n)
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        float total = sum[n][e] + sum[n][e + 2];
#pragma unroll
        for (int distance = 4; distance < 32; distance *= 2) total += device::shuffle_xor(total, distance);
        if (g == 0) joined[warp][8 * n + 2 * t + e] = total;
      }
    device::block_barrier();
  }
  const AttentionTensor& mask = call.gradients.mask;
  const auto write = [&](int row, int column, float value) {
    const int64_t at = own_sample * mask.sample + own_head * mask.head + row * mask.row + column * mask.column;
    if (attention.mask_type == AttentionMask::float32) static_cast<float*>(mask.values)[at] = value;
    else static_cast<T*>(mask.values)[at] = device::narrow<T>(value);
  };
  const int mask_rows = int(attention.mask_sizes[2]), mask_columns = int(attention.mask_sizes[3]);
  if (all_rows) {
    for (int column = int(threadIdx.x); column < columns; column += threads) {
      float total = 0.0f;
      for (int each = 0; each < warps; ++each) total += joined[each][column];
      if (column_tile * columns + column < mask_columns) write(0, column_tile * columns + column, total);
    }
    return;
  }
#pragma unroll
  for (int n = 0; n < count; ++n)
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      const int row = row_tile * rows + warp_row + g + 8 * (e / 2), column = column_tile * columns + 8 * n + 2 * t + e % 2;
      if (row < mask_rows && column < mask_columns) write(row, column, sum[n][e]);
    }
}

template <class T>
int launch(const AttentionBackward& call, unsigned blocks, void* stream) {
  return by_width<T>(call.attention, [&](auto width) {
    constexpr int D = decltype(width)::value;
    return device::launch(kernel<T, D>, dim3(blocks), dim3(backward_sizes<T, D>.threads), backward_shared_bytes<T, D>,
                          static_cast<device::Stream>(stream), call);
  });
}

}  // namespace attention_backward_mask
}  // namespace fastdl::cuda
