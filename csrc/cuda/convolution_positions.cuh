// How a block walks over the input positions of its rows, some channels wide: what the kernels of backward by input share that
// do no product of matrices.
#pragma once

#include "convolution_rows.cuh"

namespace fastdl::cuda {

struct OwnPositions {
  int vectors, lanes;
  int64_t column_block, block, channel;  // channel: the first of this thread's V
  bool active;
  BlockRows rows;
};

template <int V>
__device__ __forceinline__ OwnPositions positions_of_thread(const ConvolutionShape& shape, const RowShare& share, int vector_bits) {
  OwnPositions own;
  own.vectors = 1 << vector_bits;
  own.lanes = convolution_threads >> vector_bits;
  const int64_t columns = int64_t(V) << vector_bits, column_blocks = (shape.channels + columns - 1) / columns;
  own.column_block = blockIdx.x % column_blocks;
  own.block = blockIdx.x / column_blocks;
  own.channel = own.column_block * columns + (int(threadIdx.x) & (own.vectors - 1)) * V;
  own.active = own.channel < shape.channels;
  own.rows = rows_of_block(share, own.block);
  return own;
}

// each(row, sample, line, column) for every input position of this thread. Divisions of 32 bits: an image has fewer positions.
template <class Each>
__device__ __forceinline__ void for_positions(const ConvolutionShape& shape, const OwnPositions& own, Each each) {
  const int image = int(shape.height * shape.width), width = int(shape.width);
  int64_t row = own.rows.begin + int(threadIdx.x) / own.vectors;
  if (!own.active || row >= own.rows.end) return;
  int64_t sample = row / image;
  int64_t position = row % image;
#pragma unroll 1
  for (; row < own.rows.end; row += own.lanes) {
    each(row, sample, int(position) / width, int(position) % width);
    position += own.lanes;
    while (position >= image) position -= image, ++sample;
  }
}

inline int64_t position_blocks(const ConvolutionShape& shape, const RowShare& share, int V, int vector_bits) {
  return share.blocks() * divide_up(shape.channels, int64_t(V) << vector_bits);
}

}  // namespace fastdl::cuda
