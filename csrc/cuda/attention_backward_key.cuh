// The gradients of keys and values: a block holds keys and goes over the queries that see them, of all heads that share the keys.
// Everything is turned: rows are keys, columns are queries, so that weights stay in registers here too.
#pragma once

#include "attention_backward.cuh"

namespace fastdl::cuda {
namespace attention_backward_key {

// Sums of both gradients take D registers a thread; wide ones are made by two launches. In float32 each operand takes two.
enum class Part { both, key, value };

template <class T, int D>
inline constexpr bool in_two_parts = D > (sizeof(T) == 4 ? 64 : 128);

template <class T, int D, Part part>
__global__ void __launch_bounds__(backward_sizes<T, D>.threads, 2) kernel(const AttentionBackward call, int first_feature) {
  constexpr int rows = backward_sizes<T, D>.rows, columns = backward_sizes<T, D>.columns, threads = backward_sizes<T, D>.threads;
  constexpr int stages = backward_stages<T, D>, count = columns / 8, W = summed<T, D>;
  DYNAMIC_SHARED(unsigned char, shared);
  T *const keys = reinterpret_cast<T*>(shared), *const values = keys + rows * pitch<T, D>,
           *const steps = values + rows * pitch<T, D>;
  float* const numbers = reinterpret_cast<float*>(steps + stages * 2 * columns * pitch<T, D>);
  const Attention& attention = call.attention;
  int64_t index = call.first_block + blockIdx.x;
  const int first_row = int(index % call.tiles * rows);  // keys seen by most queries under a causal mask come first
  index /= call.tiles;
  const int key_head = int(index % attention.key_heads);
  // In shared memory, so that what is read once a step takes no registers.
  STATIC_SHARED(Place, place);
  if (threadIdx.x == 0) place = place_of(attention, index / attention.key_heads);
  device::block_barrier();
  if (first_row >= place.keys) return;
  const int group = int(attention.heads / attention.key_heads);
  const Window window = place.window.turned(place.length);
  const Span first_span = window.span_of(first_row), last_span = window.span_of(min(first_row + rows, place.keys) - 1);
  // Steps over the queries, head after head.
  const int begin = first_span.low / columns,
            steps_of_head = last_span.high < first_span.low ? 0 : last_span.high / columns + 1 - begin;
  const int all_steps = group * steps_of_head;

  const auto load_rows = [&](T* tile, const AttentionTensor& tensor, int features) {
    const Rows<T> from{rows_of<const T>(tensor, place.sample, key_head, place.first_key + first_row), tensor.row,
                       place.keys - first_row};
    load_tile<T, rows, D, threads>(tile, features, tensor.column, tensor.vector, from);
  };
  const auto load_columns = [&](int step) {
    const int head = key_head * group + step / steps_of_head, at = (begin + step % steps_of_head) * columns;
    T* const tile = steps + step % stages * 2 * columns * pitch<T, D>;
    const auto load = [&](T* to, const AttentionTensor& tensor, int features) {
      const Rows<T> from{rows_of<const T>(tensor, place.sample, head, place.first_query + at), tensor.row, place.length - at};
      load_tile<T, columns, D, threads>(to, features, tensor.column, tensor.vector, from);
    };
    load(tile, attention.query, attention.features);
    load(tile + columns * pitch<T, D>, call.gradients.grad_output, attention.value_features);
    if (threadIdx.x < 2 * columns) {
      const int column = int(threadIdx.x) % columns;
      const bool inside = at + column < place.length;
      const float* const from = threadIdx.x < columns ? call.log_sum : call.delta;
      device::cp_async<4>(numbers + step % stages * 2 * columns + threadIdx.x,
                          from + row_number(attention, place, head, inside ? at + column : 0), inside ? 4 : 0);
    }
  };
  if (all_steps > 0) {
    load_rows(keys, attention.key, attention.features);
    load_rows(values, attention.value, attention.value_features);
    load_columns(0);
  }
  device::cp_async_commit();

  // Which queries see each key; in shared memory, since most steps do not ask and registers are few.
  STATIC_SHARED(Span, seen, [rows]);
  if (threadIdx.x < rows)
    seen[threadIdx.x] = first_row + int(threadIdx.x) < place.keys ? window.span_of(first_row + int(threadIdx.x)) : Span{0, -1};
  const int warp_row = int(threadIdx.x) / 32 * 16, mine = first_row + warp_row + int(threadIdx.x % 32) / 4;
  const int t2 = 2 * int(threadIdx.x % 4);
  const Dropout dropout = dropout_of(attention);
  float key_sum[part == Part::value ? 1 : W / 8][4], value_sum[part == Part::key ? 1 : W / 8][4];
  clear(key_sum);
  clear(value_sum);
#pragma unroll 1
  for (int step = 0; step < all_steps; ++step) {
    if (stages == 2) {
      if (step + 1 < all_steps) load_columns(step + 1);
      device::cp_async_commit();
      device::cp_async_wait<1>();
    } else {
      device::cp_async_wait<0>();
    }
    device::block_barrier();
    const int head = key_head * group + step / steps_of_head, at = (begin + step % steps_of_head) * columns;
    const T *const queries = steps + step % stages * 2 * columns * pitch<T, D>, *const grad_outputs =
                                                                                    queries + columns * pitch<T, D>;
    const float *const log_sums = numbers + step % stages * 2 * columns, *const deltas = log_sums + columns;
    float p[count][4], gradients[count][4];
    clear(gradients);
    if constexpr (part != Part::value) multiply_rows<T, D, columns>(gradients, values + warp_row * pitch<T, D>, grad_outputs);
    clear(p);
    multiply_rows<T, D, columns>(p, keys + warp_row * pitch<T, D>, queries);
    uint32_t kept = 0;
    if (dropout.dropped) kept = kept_of_keys<count>(dropout, at, head, place.sequence, first_row + warp_row);
    if constexpr (part != Part::value)
      subtract_delta(gradients, dropout, kept, [&](int n, int e) { return deltas[8 * n + t2 + e % 2]; });
    scale_scores<T, count, true>(attention, p, gradients);
    if (has_mask(attention) || !(last_span.low <= at && at + columns - 1 <= first_span.high)) {
      const Span spans[2] = {seen[mine - first_row], seen[mine - first_row + 8]};
      MaskRows mask{{}, attention.mask.row};
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        mask.rows[i] = mask_row(attention, place.sample, head, 0, min(mine + 8 * i, place.keys - 1));
      }
      mask_scores<T>(attention, p, spans, mask, at);
    }
    weigh_gradients<T>(p, gradients, [&](int n, int e) { return log_sums[8 * n + t2 + e % 2]; });
    if constexpr (part != Part::value) multiply_weights<T, D, columns, W>(key_sum, gradients, queries + first_feature);
    if constexpr (part != Part::key) {
      if (dropout.dropped) drop(p, kept);
      multiply_weights<T, D, columns, W>(value_sum, p, grad_outputs + first_feature);
    }
    device::block_barrier();
    if (stages == 1) {
      if (step + 1 < all_steps) load_columns(step + 1);
      device::cp_async_commit();
    }
  }
  const auto store = [&](const AttentionTensor& to, const auto& sum, T* stage, float factor, int features) {
    if (!to.values) return;
    store_rows<T, W>(stage, sum, factor, factor, features - first_feature, to, [&](int row) -> T* {
      const int key = first_row + warp_row + row;
      if (key >= place.keys) return nullptr;
      return rows_of<T>(to, place.sample, key_head, place.first_key + key) + first_feature * to.column;
    });
  };
  if constexpr (part != Part::value)
    store(call.gradients.key, key_sum, keys + warp_row * pitch<T, D>, attention.scale, attention.features);
  if constexpr (part != Part::key)
    store(call.gradients.value, value_sum, values + warp_row * pitch<T, D>, dropout.dropped ? dropout.scale : 1.0f,
          attention.value_features);
}

template <class T>
int launch(const AttentionBackward& call, unsigned blocks, void* stream) {
  return by_width<T>(call.attention, [&](auto width) {
    constexpr int D = decltype(width)::value;
    const auto run = [&](auto kernel, int features) {
      int status = 0;
      for (int first = 0; first < features && status == 0; first += summed<T, D>)
        status = device::launch(kernel, dim3(blocks), dim3(backward_sizes<T, D>.threads), backward_shared_bytes<T, D>,
                                static_cast<device::Stream>(stream), call, first);
      return status;
    };
    if constexpr (in_two_parts<T, D>) {
      const int status = call.gradients.key.values ? run(kernel<T, D, Part::key>, call.attention.features) : 0;
      if (status != 0 || !call.gradients.value.values) return status;
      return run(kernel<T, D, Part::value>, call.attention.value_features);
    } else {
      return run(kernel<T, D, Part::both>, D);
    }
  });
}

}  // namespace attention_backward_key
}  // namespace fastdl::cuda
