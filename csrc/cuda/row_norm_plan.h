// How the rows of a normalisation are shared out over threads. A row is held in registers by a team: some lanes of a warp, or a
// block; rows that are wider than a block can hold are streamed, that is read from memory in each pass.
#pragma once

#include "row_norm.h"

namespace fastdl::cuda {

enum class RowPath { warp, block, streamed };

// Values that a thread holds of each tensor: few where a warp can hold the row so, else many. Backward has the sums of two
// gradients beside each value. Single values of half precision take a register each.
inline constexpr int few_values = 8;
inline constexpr int many_values(size_t value_bytes, bool vector, bool backward) {
  return !vector ? few_values : backward && value_bytes == 4 ? 16 : 32;
}

inline constexpr int forward_warp_threads = 128, forward_block_threads = 512;
// Twelve warps of 168 registers are all that a multiprocessor has room for; a block that has a row has no more of them.
inline constexpr int backward_threads = 384;
inline constexpr int streamed_threads = 512, column_threads = 128;
inline constexpr int widest_of_warp = 32 * many_values(2, true, true);

struct RowNormPlan {
  RowPath path;
  bool vector;         // 16-byte accesses, else one value at a time
  int values;          // held by a thread, a template argument of the kernels
  int team_bits;       // path warp: 2^team_bits lanes have a row
  int threads;         // a block
  int64_t blocks;      // each with an equal share of the rows
  int64_t sum_rows;    // partial sums of the parameters' gradients: (sum_rows, width); 0 where none is wanted
  int64_t tile_width;  // path streamed: columns of a block that adds up the parameters' gradients
};

RowNormPlan row_norm_forward_plan(const RowNorm& norm, const RowNormResults& results);
RowNormPlan row_norm_backward_plan(const RowNorm& norm, const RowNormGradients& gradients, const Target& target);

// Bytes of the partial sums, and of one number a row where rows are streamed and `centered` (layer norm).
struct RowNormWorkspace {
  size_t sums, lows;
};
RowNormWorkspace row_norm_workspace(const RowNorm& norm, const RowNormPlan& plan, bool centered);

}  // namespace fastdl::cuda
