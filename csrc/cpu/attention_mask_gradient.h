// The gradient of an additive mask: the gradients of the scores, summed up over what the mask is broadcast along. A pass of its own
// computes them again, so that the sums are in one order and no matrix of (N, H, L, S) is held.
#pragma once

#include "attention_gradient_rows.h"

namespace fastdl {

template <class T>
class AttentionMaskGradient {
  using A = typename Product<T>::Sum;

 public:
  AttentionMaskGradient(const Attention& call, const AttentionGradients& gradients) : call(call), gradients(gradients) {}

  void run() {
    const auto& sizes = call.mask_sizes;
    const int64_t blocks = GradientRows<T>::key_blocks(call, call.sequences[0]).count, key_parts = sizes[3] > 1 ? blocks : 1;
    const int64_t row_parts = sizes[2] > 1 ? (call.length + rows_of_task - 1) / rows_of_task : 1;
    const double work = 2.0 * double(call.samples) * double(call.heads) * double(call.length) * double(call.keys) *
                        double(call.features + call.value_features);
    share_tasks(sizes[0] * sizes[1] * row_parts * key_parts, work, [&](int64_t i) {
      const int64_t key_part = i % key_parts, row_part = i / key_parts % row_parts, rest = i / key_parts / row_parts;
      Task task;
      task.sample = rest / sizes[1];
      task.head = rest % sizes[1];
      task.samples = sizes[0] > 1 ? Range{task.sample, task.sample + 1} : Range{0, call.samples};
      task.heads = sizes[1] > 1 ? Range{task.head, task.head + 1} : Range{0, call.heads};
      task.rows = sizes[2] > 1 ? Range{row_part * rows_of_task, std::min((row_part + 1) * rows_of_task, call.length)}
                               : Range{0, call.length};
      task.blocks = sizes[3] > 1 ? Range{key_part, key_part + 1} : Range{0, blocks};
      run_task(task);
    });
  }

 private:
  static constexpr int64_t rows_of_task = 16 * tile_rows;
  struct Task {
    int64_t sample, head;
    Range samples, heads, rows, blocks;
  };

  const Attention& call;
  const AttentionGradients& gradients;

  void run_task(const Task& task) const {
    const bool by_row = call.mask_sizes[2] > 1, by_key = call.mask_sizes[3] > 1;
    const int64_t rows = by_row ? task.rows.end - task.rows.begin : 1;
    const int64_t size = GradientRows<T>::key_blocks(call, call.sequences[0]).size, first = task.blocks.begin * size;
    const int64_t columns = by_key ? std::min(size, call.keys - first) : 1;
    std::vector<double> sums(size_t(rows * columns));
    for (int64_t sample = task.samples.begin; sample < task.samples.end; ++sample)
      for (int64_t head = task.heads.begin; head < task.heads.end; ++head)
        for (int64_t block = task.blocks.begin; block < task.blocks.end; ++block)
          add_block(task, sample, head, block * size, columns, sums);
    for (int64_t r = 0; r < rows; ++r) {
      const int64_t row = by_row ? task.rows.begin + r : 0;
      const double* from = sums.data() + r * columns;
      if constexpr (!std::is_same_v<T, double>) {
        if (call.mask_type == MaskType::float32) {
          write(from, columns, row_of<float>(gradients.mask, task.sample, task.head, row) + first * gradients.mask.column);
          continue;
        }
      }
      write(from, columns, row_of<T>(gradients.mask, task.sample, task.head, row) + first * gradients.mask.column);
    }
  }

  void add_block(const Task& task, int64_t sample, int64_t head, int64_t first_key, int64_t columns,
                 std::vector<double>& sums) const {
    const Sequence& sequence = call.sequences[sample];
    const int64_t count = std::min(GradientRows<T>::key_blocks(call, sequence).size, sequence.keys - first_key);
    const Range seen =
        Range{visible_keys(call, sequence, task.rows.begin).begin, visible_keys(call, sequence, task.rows.end - 1).end}.within(
            first_key, count);
    if (seen.empty()) return;
    GradientRows<T> block(call, gradients, sequence, sample, head / call.group());
    Workspace workspace;
    A *weights, *slopes;
    const int64_t step = row_step<A>(block.blocks.size);
    block.reserve(workspace);
    workspace.reserve(weights, tile_rows * step);
    workspace.reserve(slopes, tile_rows * step);
    workspace.allocate();
    block.pack(first_key, seen);
    const bool by_row = call.mask_sizes[2] > 1, by_key = call.mask_sizes[3] > 1;
    for (int64_t row = task.rows.begin; row < task.rows.end; row += tile_rows) {
      const int64_t some = std::min<int64_t>(tile_rows, task.rows.end - row);
      const Range part = block.run(head % call.group(), row, some, first_key, count, false, weights, slopes, step);
      for (int64_t r = 0; r < some; ++r) {
        double* to = sums.data() + (by_row ? row + r - task.rows.begin : 0) * columns;
        const A* from = slopes + r * step;
        for (int64_t key = part.begin; key < part.end; ++key) to[by_key ? key : 0] += double(from[key]);
      }
    }
  }

  template <class M>
  static void write(const double* from, int64_t columns, M* to) {
    for (int64_t i = 0; i < columns; ++i) {
      if constexpr (std::is_floating_point_v<M>) to[i] = M(from[i]);
      else narrow(float(from[i]), to[i]);
    }
  }
};

}  // namespace fastdl
