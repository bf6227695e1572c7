// The plans of row_norm_plan.h: host code.
#include <algorithm>
#include <initializer_list>

#include "norm_call.h"
#include "norm_plan.h"
#include "row_norm_plan.h"

namespace fastdl::cuda {
namespace {

bool is_aligned(const void* address) { return uintptr_t(address) % 16 == 0; }

// Whether every row of every tensor can be reached in 16-byte vectors.
bool fits_vectors(const RowNorm& norm, std::initializer_list<RowTensor> tensors, std::initializer_list<const void*> others) {
  const int64_t vector = 16 / int64_t(value_bytes(norm.dtype));
  if (norm.width % vector != 0) return false;
  for (const RowTensor& tensor : tensors) {
    if (!tensor.values) continue;
    if (!is_aligned(tensor.values)) return false;
    if (norm.rows > norm.inner && tensor.strides.outer % vector != 0) return false;
    if (norm.inner > 1 && tensor.strides.inner % vector != 0) return false;
  }
  return std::all_of(others.begin(), others.end(), is_aligned);
}

// The smallest team of the smallest kernel that holds a row, or none.
RowNormPlan make_plan(const RowNorm& norm, bool vector, int many, int warp_threads, int most_threads) {
  RowNormPlan plan{};
  plan.vector = vector;
  const int64_t width = vector ? 16 / int64_t(value_bytes(norm.dtype)) : 1, vectors = norm.width / width;
  plan.path = RowPath::warp;
  plan.threads = warp_threads;
  for (const int values : {few_values, many}) {
    plan.values = values;
    for (plan.team_bits = 0; plan.team_bits <= 5; ++plan.team_bits)
      if ((values / width) << plan.team_bits >= vectors) return plan;
  }
  plan.team_bits = 0;
  const int64_t threads = divide_up(divide_up(vectors, many / width), 32) * 32;
  plan.path = threads <= most_threads ? RowPath::block : RowPath::streamed;
  plan.threads = plan.path == RowPath::block ? int(threads) : streamed_threads;
  return plan;
}

// Rows that a block has at a time.
int64_t teams(const RowNormPlan& plan) { return plan.path == RowPath::warp ? plan.threads >> plan.team_bits : 1; }

// As many blocks as run at a time, and then each its share of the rows: the sums that each leaves are read again. With fewer than
// four rows a block they would be a third of all that is moved, unless that leaves multiprocessors without work.
int64_t lasting_blocks(const RowNormPlan& plan, int64_t rows, int64_t multiprocessors) {
  const int64_t resident_threads = backward_threads * (plan.vector && plan.values == few_values ? 2 : 1);
  const int64_t most = multiprocessors * (resident_threads / plan.threads), blocks = divide_up(rows, teams(plan));
  if (plan.path == RowPath::warp) return std::min(blocks, most);
  return std::min(most, std::max(std::min(blocks, multiprocessors), blocks / 4));
}

}  // namespace

RowNormPlan row_norm_forward_plan(const RowNorm& norm, const RowNormResults& results) {
  const bool vector =
      fits_vectors(norm, {norm.input, norm.residual}, {results.output, results.sum, norm.weight.values, norm.bias.values});
  RowNormPlan plan =
      make_plan(norm, vector, many_values(value_bytes(norm.dtype), vector, false), forward_warp_threads, forward_block_threads);
  plan.blocks = divide_up(norm.rows, teams(plan));
  return plan;
}

RowNormPlan row_norm_backward_plan(const RowNorm& norm, const RowNormGradients& gradients, const Target& target) {
  const bool vector = fits_vectors(norm, {norm.input, gradients.output, gradients.sum}, {gradients.input, norm.weight.values});
  RowNormPlan plan =
      make_plan(norm, vector, many_values(value_bytes(norm.dtype), vector, true), backward_threads, backward_threads);
  plan.blocks = divide_up(norm.rows, teams(plan));
  if (!gradients.weight.values && !gradients.bias.values) return plan;
  const int64_t multiprocessors = std::max(target.multiprocessors, 1);
  if (plan.path != RowPath::streamed) {
    plan.sum_rows = plan.blocks = lasting_blocks(plan, norm.rows, multiprocessors);
  } else {
    plan.tile_width = column_threads * (vector ? 16 / int64_t(value_bytes(norm.dtype)) : 1);
    const int64_t tiles = divide_up(norm.width, plan.tile_width);
    plan.sum_rows = std::clamp<int64_t>(4 * multiprocessors / tiles, 1, divide_up(norm.rows, 8));
  }
  return plan;
}

RowNormWorkspace row_norm_workspace(const RowNorm& norm, const RowNormPlan& plan, bool centered) {
  const auto round_up = [](size_t bytes) { return (bytes + 15) / 16 * 16; };
  return {round_up(size_t(plan.sum_rows * norm.width) * sizeof(ChannelSums)),
          centered && plan.path == RowPath::streamed ? round_up(size_t(norm.rows) * sizeof(float)) : 0};
}

}  // namespace fastdl::cuda
