// The forward pass of attention for one storage type; included by attention_<type>.cpp alone.
#pragma once

#include "attention_dropout.h"
#include "attention_tasks.h"

namespace fastdl {

template <class T>
class AttentionForward {
  using P = Product<T>;
  using Unit = typename P::Unit;
  using A = typename P::Sum;
  static constexpr int64_t depth_unit = P::values_of_unit;

 public:
  AttentionForward(const Attention& call, const Operand4& output, const RowNumbers& log_sum)
      : call(call), output(output), log_sum(log_sum), shaping(call) {}

  void run() {
    struct Task {
      int64_t sequence, key_head;
      Range rows;
    };
    std::vector<Task> tasks;
    const int64_t sequences = int64_t(call.sequences.size()), bases = sequences * call.key_heads;
    double work = 0;
    for (int64_t b = 0; b < sequences; ++b) {
      const Sequence& sequence = call.sequences[b];
      const int64_t rows = rows_of_task(sequence.queries, bases);
      work +=
          double(sequence.queries) * double(sequence.keys + 1) * double(call.heads) * double(call.features + call.value_features);
      for (int64_t head = 0; head < call.key_heads; ++head)
        for (int64_t row = 0; row < sequence.queries; row += rows)
          tasks.push_back({b, head, {row, std::min(row + rows, sequence.queries)}});
    }
    share_tasks(int64_t(tasks.size()), work,
                [&](int64_t i) { Worker(*this, tasks[i].sequence, tasks[i].key_head, tasks[i].rows).run(); });
  }

 private:
  const Attention& call;
  const Operand4& output;
  const RowNumbers& log_sum;
  const Shaping<A> shaping;

  // A task packs its keys for itself, so it takes as many queries as there are where the heads alone keep all threads busy.
  int64_t rows_of_task(int64_t queries, int64_t bases) const {
    constexpr int64_t granule = 16 * tile_rows, most_sums = 1 << 19;
    const int64_t threads = thread_count();
    int64_t parts = bases >= 4 * threads || bases % threads == 0 ? 1 : (4 * threads + bases - 1) / bases;
    parts = std::max(parts, queries * call.group() * call.value_features / most_sums);
    return std::max(granule, round_up((queries + parts - 1) / parts, granule));
  }

  class Worker {
   public:
    Worker(const AttentionForward& parent, int64_t index, int64_t key_head, Range rows)
        : parent(parent),
          call(parent.call),
          shaping(parent.shaping),
          sequence(call.sequences[index]),
          index(index),
          key_head(key_head),
          rows(rows),
          blocks(sequence.keys, (call.features + call.value_features) * int64_t(sizeof(Unit)) / depth_unit, 256 << 10, 512),
          keys(call.features, blocks.size),
          values(blocks.size, call.value_features),
          mask(call),
          exponential(shaping.unit()) {}

    void run() {
      const Range seen{visible_keys(call, sequence, rows.begin).begin, visible_keys(call, sequence, rows.end - 1).end};
      if (seen.empty()) {
        for (int64_t g = 0; g < call.group(); ++g) nothing_seen(g, rows);
        return;
      }
      const int64_t first = seen.begin / blocks.size, last = (seen.end - 1) / blocks.size;
      single = first == last;
      allocate();
      if (!single) {
        std::memset(sums, 0, size_t(call.group() * (rows.end - rows.begin) * values.columns) * sizeof(A));
        std::fill(states, states + call.group() * (rows.end - rows.begin), RowSum<A>{});
      }
      for (int64_t block = first; block <= last; ++block) run_block(block * blocks.size, seen);
      if (single) return;
      for (int64_t g = 0; g < call.group(); ++g)
        for (int64_t row = rows.begin; row < rows.end; ++row) {
          const int64_t place = g * (rows.end - rows.begin) + row - rows.begin;
          finish(g, row, sums + place * values.columns, states[place]);
        }
    }

   private:
    const AttentionForward& parent;
    const Attention& call;
    const Shaping<A>& shaping;
    const Sequence& sequence;
    const int64_t index, key_head;
    const Range rows;
    const KeyBlocks blocks;
    Panels<P> keys, values;
    MaskRow<T> mask;
    const ScaledExponential<A> exponential;
    Workspace workspace;
    bool single = true;
    int64_t score_step = 0, weight_step = 0, query_step = 0;
    Unit *queries = nullptr, *weights = nullptr;
    A *scores = nullptr, *sums = nullptr, *mask_values = nullptr, *factors = nullptr;
    RowSum<A>* states = nullptr;

    void allocate() {
      score_step = row_step<A>(blocks.size);
      weight_step = row_step<Unit>(blocks.size / depth_unit);
      query_step = row_step<Unit>(keys.depth);
      const int64_t kept = single ? tile_rows : call.group() * (rows.end - rows.begin);
      workspace.reserve(keys.data, keys.size());
      workspace.reserve(values.data, values.size());
      workspace.reserve(queries, tile_rows * query_step);
      workspace.reserve(scores, tile_rows * score_step);
      workspace.reserve(weights, tile_rows * weight_step);
      workspace.reserve(sums, kept * values.columns);
      workspace.reserve(states, kept);
      workspace.reserve(mask_values, blocks.size);
      workspace.reserve(factors, round_up(blocks.size, dropout_columns));
      workspace.allocate();
    }

    int64_t head_of(int64_t g) const { return key_head * call.group() + g; }

    void run_block(int64_t first_key, Range seen) {
      const Range here = seen.within(first_key, std::min(blocks.size, sequence.keys - first_key));
      const int64_t key = sequence.first_key + first_key, begin = here.begin / packed_rows * packed_rows;
      Packing<T, P>::transposed(matrix_of<T>(call.key, sequence.sample, key_head, key), begin, here.end, call.features, keys);
      const auto from = matrix_of<T>(call.value, sequence.sample, key_head, key);
      if (!read_in_place(from)) Packing<T, P>::straight(from, begin, here.end, call.value_features, values);
      for (int64_t g = 0; g < call.group(); ++g)
        for (int64_t row = rows.begin; row < rows.end; row += tile_rows)
          run_rows(g, row, std::min<int64_t>(tile_rows, rows.end - row), first_key, here.end);
    }

    // For the few queries of decoding, packing the values would cost more than it spares.
    bool read_in_place([[maybe_unused]] const MatrixRows<const T>& from) {
      if constexpr (std::is_same_v<T, Unit>) {
        constexpr int64_t few = 2 * tile_rows;
        if (call.group() * (rows.end - rows.begin) > few || from.column != 1 || from.row == 0) return false;
        if (call.value_features % lanes<A> != 0) return false;
        values.data = const_cast<T*>(from.first);
        values.stride = from.row;
        return true;
      }
      return false;
    }

    void run_rows(int64_t g, int64_t row, int64_t count, int64_t first_key, int64_t keys_here) {
      const Range seen = visible_keys(call, sequence, row, row + count - 1).within(first_key, keys_here);
      if (seen.empty()) {
        if (single) nothing_seen(g, {row, row + count});
        return;
      }
      // Weights go from the begin of the vectors in which the first key lies, products from the begin of that panel.
      const int64_t begin = seen.begin / packed_rows * packed_rows, last = round_up(seen.end, lanes<A>);
      const int64_t first = begin / panel_columns<P> * panel_columns<P>;
      const auto from = matrix_of<T>(call.query, sequence.sample, head_of(g), sequence.first_query + row);
      Packing<T, P>::rows(from, count, call.features, queries, query_step);
      multiply_rows<P>(queries, query_step, count, keys, first, last, 0, keys.depth, scores, score_step, false);

      const int64_t place = g * (rows.end - rows.begin) + row - rows.begin;
      A* out = single ? sums : sums + place * values.columns;
      RowSum<A> fresh[tile_rows];
      RowSum<A>* state = single ? fresh : states + place;
      for (int64_t r = 0; r < count; ++r) {
        const Range visible = visible_keys(call, sequence, row + r).within(first_key, keys_here);
        const A before =
            weigh(g, row + r, first_key, visible, begin, last, scores + r * score_step, weights + r * weight_step, state[r]);
        if (!single && before != A(1)) scale_row(out + r * values.columns, before);
      }
      multiply_rows<P>(weights, weight_step, count, values, 0, values.columns, begin / depth_unit,
                       (seen.end + depth_unit - 1) / depth_unit, out, values.columns, !single);
      if (single)
        for (int64_t r = 0; r < count; ++r) finish(g, row + r, out + r * values.columns, state[r]);
    }

    A weigh(int64_t g, int64_t row, int64_t first_key, Range visible, int64_t begin, int64_t last, A* s, Unit* w,
            RowSum<A>& state) {
      if (visible.empty()) visible = {begin, begin};
      if (!shaping.plain) {
        if (shaping.masked) {
          const int64_t count = visible.end - begin;
          if (count > 0)
            mask.read(sequence.sample, head_of(g), sequence.first_query + row, first_key + begin, count, mask_values + begin);
        }
        shaping.shape(s + begin, mask_values + begin, nullptr, last - begin);
      }
      hide_rest(s, begin, visible, last);
      const A* kept = nullptr;
      if (call.dropped >= 0) {
        const A factor = call.dropped < 65536 ? A(65536.0 / (65536 - call.dropped)) : A(0);
        const DropoutRow where{call.seed, uint32_t(row), uint32_t(head_of(g)), uint32_t(index)};
        dropout_factors<A>(where, first_key + begin, last - begin, call.dropped, factor, factors);
        kept = factors;
      }
      return softmax_row<P>(s + begin, last - begin, exponential, kept, state, w + begin / depth_unit);
    }

    void scale_row(A* row, A factor) const {
      for (int64_t i = 0; i < values.columns; i += lanes<A>) store_vector<A>(row + i, load_vector(row + i) * factor);
    }

    void finish(int64_t g, int64_t row, const A* sum, const RowSum<A>& state) {
      const bool nothing = state.sum == 0;
      const A factor = nothing ? A(0) : A(1) / state.sum;
      T* to = row_of<T>(parent.output, sequence.sample, head_of(g), sequence.first_query + row);
      sweep<A>(call.value_features, [&](int64_t i, auto part) FASTDL_INLINE_LAMBDA {
        part.store(to + i, nothing ? Vector<A>{} : load_vector(sum + i) * factor);
      });
      const A largest = state.largest == -infinity<A> ? A(0) : state.largest;
      number_of<A>(parent.log_sum, sequence.sample, head_of(g), sequence.first_query + row) =
          nothing ? -infinity<A> : largest * shaping.unit() + std::log(state.sum);
    }

    void nothing_seen(int64_t g, Range where) {
      const Range in_sample{sequence.first_query + where.begin, sequence.first_query + where.end};
      clear_rows<T>(parent.output, sequence.sample, head_of(g), in_sample, call.value_features);
      for (int64_t row = in_sample.begin; row < in_sample.end; ++row)
        number_of<A>(parent.log_sum, sequence.sample, head_of(g), row) = -infinity<A>;
    }
  };
};

}  // namespace fastdl
