// The weights of a few queries over a block of keys, computed again, and their gradients: what backward, and the gradient of a
// mask, go on from.
#pragma once

#include "attention_dropout.h"
#include "attention_tasks.h"

namespace fastdl {

template <class T>
class GradientRows {
  using P = Product<T>;
  using Unit = typename P::Unit;
  using A = typename P::Sum;
  static constexpr int64_t depth_unit = P::values_of_unit;

 public:
  GradientRows(const Attention& call, const AttentionGradients& gradients, const Sequence& sequence, int64_t index,
               int64_t key_head)
      : blocks(key_blocks(call, sequence)),
        call(call),
        gradients(gradients),
        sequence(sequence),
        index(index),
        key_head(key_head),
        shaping(call),
        mask(call),
        keys(call.features, blocks.size),
        values(call.value_features, blocks.size) {}

  // Three packed matrices and two sums of a block's keys.
  static KeyBlocks key_blocks(const Attention& call, const Sequence& sequence) {
    return {sequence.keys, 2 * (call.features + call.value_features) * int64_t(sizeof(A)), 256 << 10, 256};
  }
  const KeyBlocks blocks;

  void reserve(Workspace& workspace) {
    query_step = row_step<Unit>(keys.depth);
    grad_step = row_step<Unit>(values.depth);
    workspace.reserve(keys.data, keys.size());
    workspace.reserve(values.data, values.size());
    workspace.reserve(queries, tile_rows * query_step);
    workspace.reserve(grads, tile_rows * grad_step);
    workspace.reserve(mask_values, blocks.size);
    workspace.reserve(factors, round_up(blocks.size, dropout_columns));
    workspace.reserve(cap_slope, blocks.size);
  }

  int64_t head_of(int64_t g) const { return key_head * call.group() + g; }

  // Packs the keys of a block that are seen.
  void pack(int64_t first_key, Range seen) {
    const int64_t begin = seen.begin / packed_rows * packed_rows, key = sequence.first_key + first_key;
    Packing<T, P>::transposed(matrix_of<T>(call.key, sequence.sample, key_head, key), begin, seen.end, call.features, keys);
    Packing<T, P>::transposed(matrix_of<T>(call.value, sequence.sample, key_head, key), begin, seen.end, call.value_features,
                              values);
  }

  // For up to tile_rows queries: their weights (after dropout), and the gradients of their scores, times the cap's derivative if
  // `through_cap`. Both are written from the begin of the vectors (of packed_rows) in which the returned range begins to the end of
  // those in which it ends.
  Range run(int64_t g, int64_t row, int64_t count, int64_t first_key, int64_t keys_here, bool through_cap, A* weights, A* slopes,
            int64_t step) {
    const Range seen = visible_keys(call, sequence, row, row + count - 1).within(first_key, keys_here);
    if (seen.empty()) return seen;
    const int64_t begin = seen.begin / packed_rows * packed_rows, last = round_up(seen.end, lanes<A>);
    const int64_t first = begin / panel_columns<P> * panel_columns<P>, head = head_of(g), query = sequence.first_query + row;
    const auto grad_rows = matrix_of<T>(gradients.grad_output, sequence.sample, head, query);
    Packing<T, P>::rows(matrix_of<T>(call.query, sequence.sample, head, query), count, call.features, queries, query_step);
    Packing<T, P>::rows(grad_rows, count, call.value_features, grads, grad_step);
    multiply_rows<P>(queries, query_step, count, keys, first, last, 0, keys.depth, weights, step, false);
    multiply_rows<P>(grads, grad_step, count, values, first, last, 0, values.depth, slopes, step, false);

    A deltas[tile_rows] = {};
    const bool whole = blocks.count == 1;
    if (!whole) sum_deltas(grad_rows, matrix_of<T>(gradients.output, sequence.sample, head, query), count, deltas);
    for (int64_t r = 0; r < count; ++r) {
      A *s = weights + r * step, *products = slopes + r * step;
      RowGradient<A> gradient{};
      gradient.unit = shaping.unit();
      gradient.log_sum = number_of<A>(gradients.log_sum, sequence.sample, head, query + r);
      gradient.delta = deltas[r];
      if (gradients.grad_log_sum.data)
        gradient.grad_log_sum = number_of<A>(gradients.grad_log_sum, sequence.sample, head, query + r);
      Range visible = visible_keys(call, sequence, row + r).within(first_key, keys_here);
      if (visible.empty()) visible = {begin, begin};
      if (!shaping.plain) {
        if (shaping.masked && visible.end > begin)
          mask.read(sequence.sample, head, query + r, first_key + begin, visible.end - begin, mask_values + begin);
        shaping.shape(s + begin, mask_values + begin, cap_slope + begin, last - begin);
        if (through_cap && shaping.softcap > 0) gradient.slope = cap_slope + begin;
      }
      hide_rest(s, begin, visible, last);
      if (call.dropped >= 0) {
        const A kept = call.dropped < 65536 ? A(65536.0 / (65536 - call.dropped)) : A(0);
        const DropoutRow where{call.seed, uint32_t(row + r), uint32_t(head), uint32_t(index)};
        dropout_factors<A>(where, first_key + begin, last - begin, call.dropped, kept, factors);
        gradient.factors = factors;
      }
      if (whole) gradient_row<true, A>(s + begin, products + begin, last - begin, gradient);
      else gradient_row<false, A>(s + begin, products + begin, last - begin, gradient);
    }
    return seen;
  }

 private:
  const Attention& call;
  const AttentionGradients& gradients;
  const Sequence& sequence;
  const int64_t index, key_head;
  const Shaping<A> shaping;
  MaskRow<T> mask;
  Panels<P> keys, values;  // both transposed

  int64_t query_step = 0, grad_step = 0;
  Unit *queries = nullptr, *grads = nullptr;
  A *mask_values = nullptr, *factors = nullptr, *cap_slope = nullptr;

  // delta = sum(grad_output * output) by row.
  void sum_deltas(const MatrixRows<const T>& grad_rows, const MatrixRows<const T>& output_rows, int64_t count, A* deltas) const {
    T scratch[2][most_columns];
    for (int64_t r = 0; r < count; ++r)
      deltas[r] = dot_rows(grad_rows.contiguous(r, call.value_features, scratch[0]),
                           output_rows.contiguous(r, call.value_features, scratch[1]), call.value_features);
  }
};

}  // namespace fastdl
