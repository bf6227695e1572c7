// How attention is cut into blocks: by dtype, and by features rounded up to a width that kernels are compiled for.
#pragma once

#include <cstddef>

#include "../types.h"

namespace fastdl::cuda {

// float32 has fewer widths: it is the slow path of a GPU, and each width costs seconds of compilation.
inline constexpr int attention_width(Dtype dtype, int features) {
  if (dtype == Dtype::float32) return features <= 64 ? 64 : features <= 128 ? 128 : 256;
  return features <= 32 ? 32 : features <= 64 ? 64 : features <= 96 ? 96 : features <= 128 ? 128 : features <= 192 ? 192 : 256;
}

// Warps of 16 rows, and columns of a step. The widest float32 tiles just fit the 99 KB of sm_86 and sm_89.
struct AttentionSizes {
  int rows, columns, threads;
};

inline constexpr AttentionSizes attention_sizes(int warps, int columns) { return {16 * warps, columns, 32 * warps}; }

inline constexpr AttentionSizes attention_forward_sizes(bool wide, int width) {
  return wide ? attention_sizes(4, width <= 64 ? 32 : 16) : attention_sizes(4, width <= 128 ? 64 : 32);
}

// Queries of a block by wgmma, and the most shared memory that it takes.
inline constexpr int attention_wgmma_rows = 128;
inline constexpr int attention_wgmma_shared_bytes = 160 * 1024;

// Of backward's kernels, which hold two tiles of rows and two of columns.
inline constexpr AttentionSizes attention_backward_sizes(bool wide, int width) {
  if (wide) return attention_sizes(width <= 128 ? 4 : 2, width <= 64 ? 32 : 16);
  return attention_sizes(4, width <= 128 ? 32 : 16);
}

// Features that one launch sums up. The widest sums take half of a thread's registers, and float32's operands the rest.
inline constexpr int attention_summed(bool wide, int width) { return wide && width > 128 ? width / 2 : width; }

inline constexpr size_t attention_tile_bytes(bool wide, int width, int rows) {
  return size_t(rows) * (width * (wide ? 4 : 2) + 16);
}

}  // namespace fastdl::cuda
