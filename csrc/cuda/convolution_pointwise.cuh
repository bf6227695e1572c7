// What the three kernels of the pointwise (1x1) convolution share: products of (rows, channels) matrices, whose tiles pass through
// shared memory twice, so that one is on its way while the other is multiplied.
#pragma once

#include "convolution_products.cuh"
#include "convolution_rows.cuh"

namespace fastdl::cuda {
namespace pointwise {

inline constexpr int tile_rows = 128, tile_columns = 64;
// A tile of rows is 128 bytes wide, eight pieces; a pitch of an odd number of pieces keeps neighbouring rows on different banks.
inline constexpr int pieces = 8;
template <class T>
inline constexpr int depth = pieces * full_vector<T>;
template <class T>
inline constexpr int pitch = depth<T> + full_vector<T>;
// Of tiles of 64 columns, which are read by columns.
inline constexpr int column_pitch = tile_columns + 8;

__device__ __forceinline__ int64_t column_blocks_of(int64_t channels) { return (channels + tile_columns - 1) / tile_columns; }

// Channels that pass through norm and activation at once: the coefficients of eight took more registers than a product leaves.
inline constexpr int entered = 4;

// The input position that output row `row` reads.
__device__ __forceinline__ int64_t input_row(const ConvolutionShape& shape, int64_t row) {
  if (shape.stride_height == 1 && shape.stride_width == 1) return row;
  const int64_t column = row % shape.out_width, line = row / shape.out_width;
  const int64_t sample = line / shape.out_height, out_line = line % shape.out_height;
  return (sample * shape.height + out_line * shape.stride_height) * shape.width + column * shape.stride_width;
}

}  // namespace pointwise

inline RowShare share_pointwise(const ConvolutionCall& call, int64_t columns, const Target& target) {
  const ConvolutionShape& shape = call.shape;
  return share_rows(shape.samples, shape.out_height * shape.out_width, call.prologue.by_sample, pointwise::tile_rows,
                    divide_up(columns, pointwise::tile_columns), 16, target);
}

}  // namespace fastdl::cuda
