// The backward pass of attention for one storage type; included by attention_<type>.cpp alone. With P the weights, computed again:
//   dV = P^T dO      dS = P (dO V^T - delta)      dQ = scale dS K      dK = scale dS^T Q      dmask = dS
#pragma once

#include "attention_gradient_rows.h"

namespace fastdl {

template <class T>
class AttentionBackward {
  using P = Product<T>;
  using Unit = typename P::Unit;
  using A = typename P::Sum;
  static constexpr int64_t depth_unit = P::values_of_unit;

 public:
  AttentionBackward(const Attention& call, const AttentionGradients& gradients) : call(call), gradients(gradients) {}

  // Whether the gradient of the mask falls off on the way: it has a place for each weight, and the cap is not in between.
  bool writes_mask() const {
    if (!gradients.mask.data || call.softcap > 0) return false;
    if (!gradients.query.data && !gradients.key.data && !gradients.value.data) return false;
    const int64_t full[4] = {call.samples, call.heads, call.length, call.keys};
    return std::equal(full, full + 4, call.mask_sizes);
  }

  void run() {
    const bool query = gradients.query.data != nullptr, others = gradients.key.data != nullptr || gradients.value.data != nullptr;
    if (!query && !others) return;
    if (writes_mask() && (call.window_left >= 0 || call.window_right >= 0)) {
      const int64_t bytes = call.length * call.keys * (call.mask_type == MaskType::float32 ? 4 : int64_t(sizeof(T)));
      parallel(call.samples * call.heads, bytes / 4,
               [&](int64_t i) { std::memset(static_cast<char*>(gradients.mask.data) + i * bytes, 0, size_t(bytes)); });
    }
    std::vector<Task> tasks;
    double work = 0;
    const int64_t sequences = int64_t(call.sequences.size()), threads = thread_count(), heads = sequences * call.key_heads;
    // A task for all keys of a head makes both kinds of gradients from one computation of the weights. Where there are too few
    // heads for that, keys and queries are shared out apart, with two computations: 7 products instead of 5.
    const bool together = query && others && 5 * ((heads + threads - 1) / threads * threads) <= 7 * heads;
    for (int64_t b = 0; b < sequences; ++b) {
      const Sequence& sequence = call.sequences[b];
      work += 2.5 * double(sequence.queries + 1) * double(sequence.keys + 1) * double(call.heads) *
              double(call.features + call.value_features);
      const int64_t blocks = GradientRows<T>::key_blocks(call, sequence).count;
      const int64_t granule = query_block(sequence.queries), parts = std::max<int64_t>(1, (4 * threads + heads - 1) / heads);
      const int64_t share = std::max(granule, round_up((sequence.queries + parts - 1) / parts, granule));
      for (int64_t head = 0; head < call.key_heads; ++head) {
        const Range all_heads{0, call.group()}, all_rows{0, sequence.queries}, all_keys{0, blocks};
        if (together) {
          tasks.push_back({b, head, all_heads, all_rows, all_keys, true, true, writes_mask()});
          continue;
        }
        if (others)
          for (int64_t block = 0; block < blocks; ++block)
            tasks.push_back({b, head, all_heads, all_rows, {block, block + 1}, false, true, writes_mask() && !query});
        if (query)
          for (int64_t g = 0; g < call.group(); ++g)
            for (int64_t row = 0; row < sequence.queries; row += share)
              tasks.push_back(
                  {b, head, {g, g + 1}, {row, std::min(row + share, sequence.queries)}, all_keys, true, false, writes_mask()});
      }
    }
    share_tasks(int64_t(tasks.size()), work, [&](int64_t i) { Worker(*this, tasks[i]).run(); });
  }

 private:
  struct Task {
    int64_t sequence, key_head;
    Range heads, rows, blocks;  // heads of the group; queries; blocks of keys
    bool query, others, mask;   // which gradients
  };

  const Attention& call;
  const AttentionGradients& gradients;

  // How many queries' weights are held at a time: about 96, in parts of nearly the same size.
  static int64_t query_block(int64_t queries) {
    constexpr int64_t most = 16 * tile_rows;
    const int64_t parts = std::max<int64_t>(1, (queries + most - 1) / most);
    return std::max<int64_t>(tile_rows, round_up((queries + parts - 1) / parts, tile_rows));
  }

  class Worker {
   public:
    Worker(const AttentionBackward& parent, const Task& task)
        : call(parent.call),
          gradients(parent.gradients),
          task(task),
          sequence(call.sequences[task.sequence]),
          rows(call, gradients, sequence, task.sequence, task.key_head),
          block_rows(query_block(sequence.queries)),
          blocks(rows.blocks),
          keys(blocks.size, call.features),
          queries(block_rows, call.features),
          grad_outputs(block_rows, call.value_features) {}

    void run() {
      allocate();
      const int64_t count = task.rows.end - task.rows.begin;
      if (task.query) std::memset(query_sums, 0, size_t(kept_rows() * keys.columns) * sizeof(A));
      for (int64_t block = task.blocks.begin; block < task.blocks.end; ++block) run_keys(block * blocks.size);
      if (!task.query) return;
      for (int64_t g = task.heads.begin; g < task.heads.end; ++g)
        for (int64_t row = 0; row < count; ++row)
          write_row(row_of<T>(gradients.query, sequence.sample, rows.head_of(g), sequence.first_query + task.rows.begin + row),
                    query_sums + ((g - task.heads.begin) * count + row) * keys.columns, call.features, A(call.scale));
    }

   private:
    const Attention& call;
    const AttentionGradients& gradients;
    const Task& task;
    const Sequence& sequence;
    GradientRows<T> rows;
    const int64_t block_rows;
    const KeyBlocks blocks;
    Panels<P> keys, queries, grad_outputs;
    Workspace workspace;
    int64_t step = 0, unit_step = 0;
    A *query_sums = nullptr, *key_sums = nullptr, *value_sums = nullptr;
    A *weights = nullptr, *slopes = nullptr;  // of a block of queries, or of a few where units are pairs
    Unit *weight_units = nullptr, *slope_units = nullptr, *slope_rows = nullptr;  // where units are pairs: by columns, by rows
    Range seen_of[16 + 1];                                                        // by a few queries of the block

    int64_t kept_rows() const { return (task.heads.end - task.heads.begin) * (task.rows.end - task.rows.begin); }

    void allocate() {
      step = row_step<A>(blocks.size);
      unit_step = row_step<Unit>(blocks.size / depth_unit);
      const int64_t held = depth_unit == 1 ? block_rows : tile_rows;
      rows.reserve(workspace);
      workspace.reserve(weights, held * step);
      workspace.reserve(slopes, held * step);
      if (task.query) {
        workspace.reserve(keys.data, keys.size());
        workspace.reserve(query_sums, kept_rows() * keys.columns);
      }
      if (task.others) {
        workspace.reserve(queries.data, queries.size());
        workspace.reserve(grad_outputs.data, grad_outputs.size());
        workspace.reserve(key_sums, blocks.size * queries.columns);
        workspace.reserve(value_sums, blocks.size * grad_outputs.columns);
      }
      if (depth_unit == 2) {
        workspace.reserve(weight_units, block_rows / 2 * step);
        workspace.reserve(slope_units, block_rows / 2 * step);
        workspace.reserve(slope_rows, tile_rows * unit_step);
      }
      workspace.allocate();
    }

    void run_keys(int64_t first_key) {
      const int64_t count = std::min(blocks.size, sequence.keys - first_key);
      if (task.others) {
        std::memset(key_sums, 0, size_t(count * queries.columns) * sizeof(A));
        std::memset(value_sums, 0, size_t(count * grad_outputs.columns) * sizeof(A));
      }
      const Range seen = task.rows.empty() ? Range{}
                                           : Range{visible_keys(call, sequence, task.rows.begin).begin,
                                                   visible_keys(call, sequence, task.rows.end - 1).end}
                                                 .within(first_key, count);
      if (!seen.empty()) {
        rows.pack(first_key, seen);
        const auto from = matrix_of<T>(call.key, sequence.sample, task.key_head, sequence.first_key + first_key);
        if (task.query) Packing<T, P>::straight(from, seen.begin / packed_rows * packed_rows, seen.end, call.features, keys);
        for (int64_t g = task.heads.begin; g < task.heads.end; ++g)
          for (int64_t row = task.rows.begin; row < task.rows.end; row += block_rows)
            run_queries(g, {row, std::min(row + block_rows, task.rows.end)}, first_key, count);
      }
      if (!task.others) return;
      for (int64_t key = 0; key < count; ++key) {
        const int64_t place = sequence.first_key + first_key + key;
        if (gradients.key.data)
          write_row(row_of<T>(gradients.key, sequence.sample, task.key_head, place), key_sums + key * queries.columns,
                    call.features, A(call.scale));
        if (gradients.value.data)
          write_row(row_of<T>(gradients.value, sequence.sample, task.key_head, place), value_sums + key * grad_outputs.columns,
                    call.value_features, A(1));
      }
    }

    void run_queries(int64_t g, Range where, int64_t first_key, int64_t count) {
      const Range seen = visible_keys(call, sequence, where.begin, where.end - 1).within(first_key, count);
      if (seen.empty()) return;
      const int64_t begin = seen.begin / packed_rows * packed_rows, end = round_up(seen.end, packed_rows);
      for (int64_t row = where.begin; row < where.end; row += tile_rows) {
        const int64_t at = row - where.begin, some = std::min<int64_t>(tile_rows, where.end - row);
        A *w = weights + (depth_unit == 1 ? at : 0) * step, *d = slopes + (depth_unit == 1 ? at : 0) * step;
        const Range part = rows.run(g, row, some, first_key, count, true, w, d, step);
        if (task.mask) write_mask(g, row, some, first_key, part, d);
        seen_of[at / tile_rows] = part;
        if (task.others) fill_rest(w, d, some, part, begin, end);
        A* sums = query_sums + ((g - task.heads.begin) * (task.rows.end - task.rows.begin) + row - task.rows.begin) * keys.columns;
        hand_on(w, d, at, some, part, begin, end, sums);
      }
      if (!task.others) return;
      const int64_t length = where.end - where.begin, query = sequence.first_query + where.begin;
      if (gradients.value.data) {
        Packing<T, P>::straight(matrix_of<T>(gradients.grad_output, sequence.sample, rows.head_of(g), query), 0, length,
                                call.value_features, grad_outputs);
        add_products(depth_unit == 1 ? reinterpret_cast<const Unit*>(weights) : weight_units, seen, length, grad_outputs,
                     value_sums);
      }
      if (gradients.key.data) {
        Packing<T, P>::straight(matrix_of<T>(call.query, sequence.sample, rows.head_of(g), query), 0, length, call.features,
                                queries);
        add_products(depth_unit == 1 ? reinterpret_cast<const Unit*>(slopes) : slope_units, seen, length, queries, key_sums);
      }
    }

    // The rows are written where some of them sees a key, and read where any of the block does.
    void fill_rest(A* w, A* d, int64_t some, Range part, int64_t begin, int64_t end) const {
      const int64_t from = part.empty() ? end : part.begin / packed_rows * packed_rows,
                    to = part.empty() ? end : round_up(part.end, lanes<A>);
      for (int64_t r = 0; r < some; ++r) {
        std::fill(w + r * step + begin, w + r * step + std::max(begin, from), A(0));
        std::fill(d + r * step + begin, d + r * step + std::max(begin, from), A(0));
        if (to < end) {
          std::fill(w + r * step + to, w + r * step + end, A(0));
          std::fill(d + r * step + to, d + r * step + end, A(0));
        }
      }
    }

    // dQ of a few rows, and where units are pairs the rows as pairs.
    void hand_on([[maybe_unused]] const A* w, const A* d, [[maybe_unused]] int64_t at, int64_t some, Range part,
                 [[maybe_unused]] int64_t begin, [[maybe_unused]] int64_t end, A* sums) {
      const Unit* units = nullptr;
      int64_t units_step = step;
      const int64_t from = part.begin / packed_rows * packed_rows;
      if constexpr (depth_unit == 1) {
        units = d;
#if FASTDL_BFLOAT16_PAIRS
      } else {
        if (task.others)
          for (int64_t r = 0; r < some; r += 2) {
            const bool second = r + 1 < some;
            const int64_t to = (at + r) / 2 * step + begin;
            pair_rows(w + r * step + begin, second ? w + (r + 1) * step + begin : nullptr, end - begin, weight_units + to);
            pair_rows(d + r * step + begin, second ? d + (r + 1) * step + begin : nullptr, end - begin, slope_units + to);
          }
        if (task.query && !part.empty())
          for (int64_t r = 0; r < some; ++r)
            for (int64_t i = from; i < part.end; i += lanes<A>)
              store_units<P>(slope_rows + r * unit_step, i, load_vector(d + r * step + i));
        units = slope_rows;
        units_step = unit_step;
#endif
      }
      if (task.query && !part.empty())
        multiply_rows<P>(units, units_step, some, keys, 0, keys.columns, from / depth_unit,
                         (part.end + depth_unit - 1) / depth_unit, sums, keys.columns, true);
    }

    // sums += (rows of a)^T b, for the keys that are seen, a few at a time, over the queries that see some of these.
    void add_products(const Unit* a, Range seen, int64_t length, const Panels<P>& b, A* sums) const {
      const int64_t parts = (length + tile_rows - 1) / tile_rows;
      for (int64_t panel = 0; panel < b.columns; panel += panel_columns<P>) {
        int64_t first = 0;
        for (int64_t key = seen.begin / packed_rows * packed_rows; key < seen.end; key += tile_rows) {
          const int64_t some = std::min<int64_t>(tile_rows, seen.end - key);
          while (first < parts && seen_of[first].end <= key) ++first;
          int64_t last = parts;
          while (last > first && (seen_of[last - 1].begin >= key + some || seen_of[last - 1].empty())) --last;
          if (first == last) continue;
          const int64_t end = std::min(last * tile_rows, length);
          multiply_rows<P, true>(a + key, step, some, b, panel, std::min(panel + panel_columns<P>, b.columns),
                                 first * tile_rows / depth_unit, (end + depth_unit - 1) / depth_unit, sums + key * b.columns,
                                 b.columns, true);
        }
      }
    }

    static void write_row(T* to, const A* from, int64_t columns, A factor) {
      sweep<A>(columns, [&](int64_t i, auto part) FASTDL_INLINE_LAMBDA { part.store(to + i, load_vector(from + i) * factor); });
    }

    void write_mask(int64_t g, int64_t row, int64_t some, int64_t first_key, Range part, const A* d) const {
      for (int64_t r = 0; r < some; ++r) {
        const int64_t head = rows.head_of(g);
        auto write = [&](auto* to) {
          to += first_key + part.begin;
          const A* from = d + r * step + part.begin;
          sweep<A>(part.end - part.begin,
                   [&](int64_t i, auto vector) FASTDL_INLINE_LAMBDA { vector.store(to + i, load_vector(from + i)); });
        };
        if constexpr (!std::is_same_v<T, double>) {
          if (call.mask_type == MaskType::float32) {
            write(row_of<float>(gradients.mask, sequence.sample, head, row + r));
            continue;
          }
        }
        write(row_of<T>(gradients.mask, sequence.sample, head, row + r));
      }
    }
  };
};

}  // namespace fastdl
