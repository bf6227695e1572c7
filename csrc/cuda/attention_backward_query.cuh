// The queries' gradients: a block holds queries and goes over the keys that they see.
#pragma once

#include "attention_backward.cuh"

namespace fastdl::cuda {

// What a block of queries and a step of keys give: weights p and gradients of scores, as accumulators. With `capped` the latter are
// of the scores before the cap, else of those after it, to which the mask was added.
struct QueryStep {
  const AttentionBackward& call;
  const Place& place;
  const Dropout& dropout;
  int head, first_row, tile_rows;  // of the block
  Span whole;                      // keys that each of the block's queries sees

  template <class T, int D, int columns, bool capped>
  __device__ __forceinline__ void run(const T* queries, const T* grad_outputs, const T* keys, const T* values, int warp_row,
                                      const float (&log_sums)[2], const float (&deltas)[2], int first_key,
                                      float (&p)[columns / 8][4], float (&gradients)[columns / 8][4]) const {
    constexpr int count = columns / 8;
    const Attention& attention = call.attention;
    const int mine = first_row + warp_row + int(threadIdx.x % 32) / 4;
    clear(gradients);
    multiply_rows<T, D, columns>(gradients, grad_outputs + warp_row * pitch<T, D>, values);
    clear(p);
    multiply_rows<T, D, columns>(p, queries + warp_row * pitch<T, D>, keys);
    uint32_t kept = 0;
    if (dropout.dropped) {
      const int rows[2] = {mine, mine + 8}, heads[2] = {head, head};
      kept = kept_of_queries<count>(dropout, rows, heads, place.sequence, first_key);
    }
    subtract_delta(gradients, dropout, kept, [&](int, int e) { return deltas[e / 2]; });
    scale_scores<T, count, capped>(attention, p, gradients);
    if (has_mask(attention) || !(whole.low <= first_key && first_key + columns - 1 <= whole.high)) {
      Span spans[2];
      MaskRows mask{{}, attention.mask.column};
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int query = mine + 8 * i < place.length ? mine + 8 * i : place.length - 1;
        spans[i] = mine + 8 * i < place.length ? place.window.span_of(query) : Span{0, -1};
        mask.rows[i] = mask_row(attention, place.sample, head, query, 0);
      }
      mask_scores<T>(attention, p, spans, mask, first_key);
    }
    weigh_gradients<T>(p, gradients, [&](int, int e) { return log_sums[e / 2]; });
  }
};

// The log-sum-exp and delta of a thread's two queries.
__device__ __forceinline__ void read_row_numbers(const AttentionBackward& call, const Place& place, int head, int query,
                                                 float (&log_sums)[2], float (&deltas)[2]) {
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const bool inside = query + 8 * i < place.length;
    const int64_t at = row_number(call.attention, place, head, inside ? query + 8 * i : 0);
    log_sums[i] = inside ? call.log_sum[at] : INFINITY;
    deltas[i] = inside ? call.delta[at] : 0.0f;
  }
}

namespace attention_backward_query {

template <class T, int D>
__global__ void __launch_bounds__(backward_sizes<T, D>.threads, 2) kernel(const AttentionBackward call, int first_feature) {
  constexpr int rows = backward_sizes<T, D>.rows, columns = backward_sizes<T, D>.columns, threads = backward_sizes<T, D>.threads;
  constexpr int stages = backward_stages<T, D>;
  DYNAMIC_SHARED(unsigned char, shared);
  T *const queries = reinterpret_cast<T*>(shared), *const grad_outputs = queries + rows * pitch<T, D>,
           *const steps = grad_outputs + rows * pitch<T, D>;
  const Attention& attention = call.attention;
  int64_t index = call.first_block + blockIdx.x;
  const int first_row = int((call.tiles - 1 - index % call.tiles) * rows);
  index /= call.tiles;
  const int head = int(index % attention.heads);
  // In shared memory, so that what is read once a step takes no registers.
  STATIC_SHARED(Place, place);
  if (threadIdx.x == 0) place = place_of(attention, index / attention.heads);
  device::block_barrier();
  if (first_row >= place.length) return;
  const int64_t key_head = head / (attention.heads / attention.key_heads);
  const int last_row = min(first_row + rows, place.length) - 1;
  const Span first_span = place.window.span_of(first_row), last_span = place.window.span_of(last_row);
  const int begin = first_span.low / columns * columns, end = last_span.high;

  const auto load_rows = [&](T* tile, const AttentionTensor& tensor, int features) {
    const Rows<T> from{rows_of<const T>(tensor, place.sample, head, place.first_query + first_row), tensor.row,
                       place.length - first_row};
    load_tile<T, rows, D, threads>(tile, features, tensor.column, tensor.vector, from);
  };
  const auto load_columns = [&](int step, int at) {
    T* const tile = steps + step % stages * 2 * columns * pitch<T, D>;
    const auto load = [&](T* to, const AttentionTensor& tensor, int features) {
      const Rows<T> from{rows_of<const T>(tensor, place.sample, key_head, place.first_key + at), tensor.row, place.keys - at};
      load_tile<T, columns, D, threads>(to, features, tensor.column, tensor.vector, from);
    };
    load(tile, attention.key, attention.features);
    load(tile + columns * pitch<T, D>, attention.value, attention.value_features);
  };
  if (begin <= end) {
    load_rows(queries, attention.query, attention.features);
    load_rows(grad_outputs, call.gradients.grad_output, attention.value_features);
    load_columns(0, begin);
  }
  device::cp_async_commit();

  const int warp_row = int(threadIdx.x) / 32 * 16;
  float log_sums[2], deltas[2];
  read_row_numbers(call, place, head, first_row + warp_row + int(threadIdx.x % 32) / 4, log_sums, deltas);
  const Dropout dropout = dropout_of(attention);
  const QueryStep step_of{call, place, dropout, head, first_row, rows, {last_span.low, first_span.high}};
  constexpr int W = summed<T, D>;
  float sum[W / 8][4];
  clear(sum);
#pragma unroll 1
  for (int at = begin, step = 0; at <= end; at += columns, ++step) {
    if (stages == 2) {
      if (at + columns <= end) load_columns(step + 1, at + columns);
      device::cp_async_commit();
      device::cp_async_wait<1>();
    } else {
      device::cp_async_wait<0>();
    }
    device::block_barrier();
    const T *const keys = steps + step % stages * 2 * columns * pitch<T, D>, *const values = keys + columns * pitch<T, D>;
    float p[columns / 8][4], gradients[columns / 8][4];
    step_of.template run<T, D, columns, true>(queries, grad_outputs, keys, values, warp_row, log_sums, deltas, at, p, gradients);
    multiply_weights<T, D, columns, W>(sum, gradients, keys + first_feature);
    device::block_barrier();
    if (stages == 1) {
      if (at + columns <= end) load_columns(step + 1, at + columns);
      device::cp_async_commit();
    }
  }
  store_rows<T, W>(queries + warp_row * pitch<T, D>, sum, attention.scale, attention.scale, attention.features - first_feature,
                   call.gradients.query, [&](int row) -> T* {
                     const int query = first_row + warp_row + row;
                     if (query >= place.length) return nullptr;
                     return rows_of<T>(call.gradients.query, place.sample, head, place.first_query + query) +
                            first_feature * call.gradients.query.column;
                   });
}

template <class T>
int launch(const AttentionBackward& call, unsigned blocks, void* stream) {
  return by_width<T>(call.attention, [&](auto width) {
    constexpr int D = decltype(width)::value;
    int status = 0;
    for (int first = 0; first < call.attention.features && status == 0; first += summed<T, D>)
      status = device::launch(kernel<T, D>, dim3(blocks), dim3(backward_sizes<T, D>.threads), backward_shared_bytes<T, D>,
                              static_cast<device::Stream>(stream), call, first);
    return status;
  });
}

}  // namespace attention_backward_query
}  // namespace fastdl::cuda
