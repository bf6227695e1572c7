// In what tiles the outputs of a depthwise convolution are taken, so that what a tile needs of the input fits into shared memory.
#include "convolution_depthwise.cuh"

namespace fastdl::cuda {
namespace {

SlotLine line_of(int outputs, int kernel, int stride, int dilation) {
  const int dense = (outputs - 1) * stride + (kernel - 1) * dilation + 1, by_tap = outputs * kernel;
  if (dense <= by_tap) return {outputs, dense, stride, dilation, false};
  return {outputs, by_tap, 1, outputs, true};
}

// bytes_of(positions, slots): the shared memory of a tile with so many outputs and input positions.
template <class Bytes>
DepthwiseTiles make_tiles(const ConvolutionCall& call, const Target& target, int most_vectors, Bytes bytes_of) {
  const ConvolutionShape& shape = call.shape;
  const int64_t vectors = divide_up(shape.out_channels, depthwise::vector_width(call));
  DepthwiseTiles tiles;
  tiles.vector_bits = vector_bits_of(vectors, depthwise::is_vector(call));
  while ((1 << tiles.vector_bits) > most_vectors) --tiles.vector_bits;
  tiles.column_blocks = divide_up(vectors, int64_t(1) << tiles.vector_bits);
  // Three blocks of a multiprocessor at a time: one copies while another computes.
  const int64_t room = std::min<int64_t>(64 << 10, target.shared_bytes / 3);
  int height = int(std::min<int64_t>(8, shape.out_height)), width = int(std::min<int64_t>(8, shape.out_width));
  for (;;) {
    tiles.down = line_of(height, shape.kernel_height, shape.stride_height, shape.dilation_height);
    tiles.across = line_of(width, shape.kernel_width, shape.stride_width, shape.dilation_width);
    tiles.shared_bytes = size_t(bytes_of(tiles, height * width, tiles.down.slots * tiles.across.slots));
    if (int64_t(tiles.shared_bytes) <= room) break;
    if (height * width > 1) (height >= width ? height : width) = divide_up(height >= width ? height : width, 2);
    else if (tiles.vector_bits > 0) tiles.column_blocks = divide_up(vectors, int64_t(1) << --tiles.vector_bits);
    else break;
  }
  tiles.tiles_down = int(divide_up(shape.out_height, height));
  tiles.tiles_across = int(divide_up(shape.out_width, width));
  tiles.tiles = shape.samples * tiles.tiles_down * tiles.tiles_across;
  return tiles;
}

void share_tiles(DepthwiseTiles& tiles, int64_t wanted_blocks, int64_t most_tiles) {
  const int64_t wanted = std::max<int64_t>(divide_up(wanted_blocks, tiles.column_blocks), 1);
  tiles.tiles_per_block = std::clamp<int64_t>(tiles.tiles / wanted, 1, most_tiles);
  tiles.blocks = divide_up(tiles.tiles, tiles.tiles_per_block);
}

}  // namespace

DepthwiseTiles depthwise_forward_tiles(const ConvolutionCall& call, const Target& target) {
  const int V = depthwise::vector_width(call);
  const int64_t value = int64_t(value_bytes(call.dtype));
  auto tiles = make_tiles(call, target, 32, [&](const DepthwiseTiles& made, int, int64_t slots) {
    const int64_t columns = int64_t(V) << made.vector_bits;
    const int64_t moments = convolution_threads / 32 * columns * int64_t(sizeof(Moments));
    return call.shape.taps() * columns * int64_t(sizeof(float)) + std::max(slots * columns * value, moments);
  });
  // A thread adds up deviations from its first value: few enough of them that this may be any.
  share_tiles(tiles, int64_t(8) * target.multiprocessors, 16);
  return tiles;
}

DepthwiseTiles depthwise_weight_tiles(const ConvolutionCall& call, const Target& target) {
  const int V = depthwise::vector_width(call);
  const int64_t value = int64_t(value_bytes(call.dtype));
  const int most_vectors = convolution_threads / call.shape.taps();
  auto tiles = make_tiles(call, target, most_vectors, [&](const DepthwiseTiles& made, int64_t positions, int64_t slots) {
    const int64_t columns = int64_t(V) << made.vector_bits, sums = 2 * convolution_threads * V * int64_t(sizeof(float));
    return std::max((positions + slots) * columns * value, sums);
  });
  // Each block leaves a whole weight's sums.
  share_tiles(tiles, int64_t(4) * target.multiprocessors, std::numeric_limits<int32_t>::max());
  return tiles;
}

}  // namespace fastdl::cuda
