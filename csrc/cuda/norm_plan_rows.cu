// In what shape the rows of a channels-last tensor are cut into tiles.
#include <algorithm>
#include <numeric>

#include "norm_plan.h"

namespace fastdl::cuda {
namespace {

RowStep step_of(const Rows& rows, const Strides& strides) {
  return {rows.sample_step * strides.sample + rows.position_step * strides.position,
          strides.sample - rows.positions * strides.position};
}

}  // namespace

bool plan_rows(const Task& task, const Target& target, bool backward, int vector, int kept, Plan& plan) {
  const Norm& norm = task.norm;
  Rows& rows = plan.rows;
  const int64_t value = int64_t(value_bytes(norm.dtype));
  rows.outer = task.across_samples ? 1 : norm.samples;
  rows.rows = task.across_samples ? norm.samples * norm.positions : norm.positions;
  rows.positions = norm.positions;
  rows.groups = task.groups;
  rows.group_channels = norm.channels / task.groups;

  // The fewest groups that fill whole vectors, and what a block's threads can take of a row.
  const int64_t fewest = std::min(vector / std::gcd<int64_t>(rows.group_channels, vector), rows.groups);
  const int64_t most_threads = vector == 1 ? 512 : 256, widest = most_threads * vector;
  rows.parts = 1;
  if (fewest * rows.group_channels > widest) {
    if (rows.group_channels % vector != 0) return false;
    // A power of two, as the parts of a group are blocks of a cluster.
    while (rows.parts * widest < rows.group_channels) rows.parts *= 2;
  }

  // A tile of columns `bytes` wide, of which `row_ranks` share the rows. Returns what a block keeps.
  auto shape = [&](int64_t bytes, int64_t row_ranks, int64_t most_slots) {
    int64_t groups = std::max<int64_t>(bytes / (fewest * rows.group_channels * value), 1) * fewest;
    groups = std::min({groups, rows.groups, std::max(widest / rows.group_channels / fewest * fewest, fewest)});
    rows.tile_groups = int(rows.parts > 1 ? 1 : groups);
    rows.tiles = divide_up(rows.groups, rows.tile_groups);
    const int64_t columns = rows.tile_groups * rows.group_channels;
    rows.tile_columns = int(rows.parts > 1 ? divide_up(divide_up(columns, rows.parts), vector) * vector : columns);
    rows.vectors = int(divide_up(rows.tile_columns, vector));
    const int64_t lanes = std::max<int64_t>((rows.vectors > 256 ? 512 : 256) / rows.vectors, 1);
    if (most_slots > 0) row_ranks = divide_up(rows.rows, lanes * most_slots);
    rows.rows_per_rank = divide_up(rows.rows, row_ranks);
    // Some four rows a thread: enough in flight, and few lanes to join.
    const int64_t wanted = std::max(divide_up(rows.rows_per_rank, 4), divide_up(64, rows.vectors));
    rows.row_lanes = int(std::min({lanes, wanted, rows.rows_per_rank}));
    rows.slots = int(std::min<int64_t>(divide_up(rows.rows_per_rank, rows.row_lanes), INT32_MAX));
    rows.scratch_bytes = int(backward ? rows_backward_scratch_bytes(rows, vector) : rows_forward_scratch_bytes(rows, vector));
    plan.ranks = int(row_ranks * rows.parts);
    plan.launch.threads = int(divide_up(int64_t(rows.vectors) * rows.row_lanes, 32) * 32);
    plan.launch.blocks = rows.outer * rows.tiles * plan.ranks;
    return int64_t(rows.slots) * plan.launch.threads * vector * value * kept;
  };

  const bool split_only = target.path == Path::split;
  const int most_ranks = target.capability >= 90 && target.path != Path::block ? 8 : 1;
  const int64_t all = norm.samples * norm.positions * norm.channels * value * kept;
  int64_t best_bytes = 0, best_ranks = 0, best_blocks = 0;
  bool done = false;
  // Lines of 128 bytes if a block, or else a cluster, can hold such a tile; narrower ones only then. Two blocks of a multiprocessor
  // at a time, so that one loads while the other computes; or else one.
  // Where rows are few a tile is wide, or a block would have next to nothing to do.
  const int64_t wide = std::max<int64_t>(128, std::min<int64_t>(8192 / (rows.rows * kept), 4096));
  for (int share : {2, 1}) {
    for (int64_t bytes : {wide, int64_t(64), int64_t(32), int64_t(16)}) {
      for (int ranks = 1; ranks * rows.parts <= most_ranks && !split_only && !done; ranks *= 2) {
        if (target.path == Path::cluster && ranks * rows.parts == 1) continue;
        const int64_t needed = shape(bytes, ranks, 0);
        if (share * (needed + rows.scratch_bytes) > target.shared_bytes) continue;
        if (plan.launch.blocks <= best_blocks) continue;
        best_bytes = bytes, best_ranks = ranks, best_blocks = plan.launch.blocks;
        done = best_blocks >= target.multiprocessors || needed <= 8192;
      }
      if (best_blocks && bytes >= 64 && (done || best_blocks * 2 >= target.multiprocessors)) done = true;
    }
    if (best_blocks) break;
  }
  int64_t needed = 0;
  if (best_blocks && (target.path != Path::automatic || all <= (int64_t(2) << 20) || best_blocks * 2 >= target.multiprocessors)) {
    needed = shape(best_bytes, best_ranks, 0);
    plan.path = plan.ranks > 1 ? Path::cluster : Path::block;
    plan.launch.cluster = plan.ranks;
  } else {
    const int64_t room = std::min<int64_t>(64 << 10, target.shared_bytes / 2);
    // A block leaves sums of each of its columns, so that few columns of many rows leave the least.
    if (rows.group_channels % vector == 0)
      rows.parts = int(std::max<int64_t>(rows.parts, divide_up(rows.group_channels * value, 256)));
    int64_t slots = std::max<int64_t>(room / (256 * vector * value * kept), 1);
    // Rows that lanes do not divide, and the scratch, take more than they count.
    while ((needed = shape(64, 1, slots)) + rows.scratch_bytes > target.shared_bytes && slots > 1) slots = slots / 2;
    if (needed + rows.scratch_bytes > target.shared_bytes) return false;
    plan.path = Path::split;
    plan.launch.cluster = 1;
  }
  plan.launch.shared_bytes = size_t(needed + rows.scratch_bytes);
  rows.sample_step = rows.row_lanes / rows.positions;
  rows.position_step = rows.row_lanes % rows.positions;
  return true;
}

void set_row_steps(const Call& call, Rows& rows) {
  rows.input_step = step_of(rows, call.input_strides);
  rows.residual_step = step_of(rows, call.residual_strides);
  rows.gradient_step = step_of(rows, call.gradient_strides);
  rows.output_step = step_of(rows, call.output_strides);
}

}  // namespace fastdl::cuda
