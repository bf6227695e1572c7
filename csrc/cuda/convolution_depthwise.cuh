// Tiles of the depthwise convolution. A block has some channels and, one after another, tiles of output positions; the input rows
// that a tile needs are brought to shared memory once, and pass through norm and activation there.
#pragma once

#include "convolution_rows.cuh"

namespace fastdl::cuda {
namespace depthwise {

// Values of V channels that this thread has, of the output and of the input. With several outputs a channel V is 1.
struct ThreadChannels {
  int vectors, vector, lane, lanes;
  int64_t out_channel, channel;
  bool active;
};

template <int V>
__device__ __forceinline__ ThreadChannels channels_of_thread(const ConvolutionShape& shape, int vector_bits, int64_t column_block) {
  ThreadChannels own;
  own.vectors = 1 << vector_bits;
  own.vector = int(threadIdx.x) & (own.vectors - 1);
  own.lane = int(threadIdx.x) >> vector_bits;
  own.lanes = convolution_threads >> vector_bits;
  own.out_channel = ((column_block << vector_bits) + own.vector) * V;
  own.active = own.out_channel < shape.out_channels;
  own.channel = V > 1 ? own.out_channel : own.out_channel / (shape.out_channels / shape.channels);
  return own;
}

// One tile: its sample and its first output.
struct Tile {
  int64_t sample;
  int line, column;
  int lines, columns;  // fewer at the edges
};

__device__ __forceinline__ Tile tile_at(const ConvolutionShape& shape, const DepthwiseTiles& tiles, int64_t index) {
  Tile tile;
  const int64_t a_sample = int64_t(tiles.tiles_down) * tiles.tiles_across;
  tile.sample = index / a_sample;
  const int rest = int(index % a_sample);
  tile.line = rest / tiles.tiles_across * tiles.down.outputs;
  tile.column = rest % tiles.tiles_across * tiles.across.outputs;
  tile.lines = min(tiles.down.outputs, int(shape.out_height) - tile.line);
  tile.columns = min(tiles.across.outputs, int(shape.out_width) - tile.column);
  return tile;
}

// How far slot `slot` is from the first input row of a tile.
__device__ __forceinline__ int row_of_slot(const SlotLine& line, int slot, int stride, int dilation) {
  return line.by_tap ? slot % line.outputs * stride + slot / line.outputs * dilation : slot;
}

// Brings the tile's input to shared memory, (slots down, slots across, vectors), as act(norm(x)), and zeros where there is padding.
// Complete after a barrier.
template <class T, int V>
__device__ __forceinline__ void bring_input(const ConvolutionCall& call, const DepthwiseTiles& tiles, const Tile& tile,
                                            const ThreadChannels& own, const Channels<V>& channels, Pack<T, V>* slots) {
  const ConvolutionShape& shape = call.shape;
  const T* const sample =
      static_cast<const T*>(call.input) + tile.sample * shape.height * shape.width * shape.channels + own.channel;
  const int top = tile.line * shape.stride_height - shape.padding_height;
  const int left = tile.column * shape.stride_width - shape.padding_width;
  const int count = tiles.down.slots * tiles.across.slots;
  const auto place = [&](int slot, int& line, int& column) {
    line = top + row_of_slot(tiles.down, slot / tiles.across.slots, shape.stride_height, shape.dilation_height);
    column = left + row_of_slot(tiles.across, slot % tiles.across.slots, shape.stride_width, shape.dilation_width);
    return own.active && unsigned(line) < unsigned(shape.height) && unsigned(column) < unsigned(shape.width);
  };
  int line, column;
#pragma unroll 1
  for (int slot = own.lane; slot < count; slot += own.lanes) {
    const bool present = place(slot, line, column);
    keep(slots + slot * own.vectors + own.vector, sample + (present ? (line * shape.width + column) * shape.channels : 0), 0,
         present ? V : 0);
  }
  device::cp_async_commit();
  device::cp_async_wait<0>();
  // What this thread copied itself.
#pragma unroll 1
  for (int slot = own.lane; slot < count; slot += own.lanes)
    if (place(slot, line, column)) enter<T, V>(call.prologue, channels, slots + slot * own.vectors + own.vector);
}

inline bool is_vector(const ConvolutionCall& call) {
  return call.vector_in && call.vector_out && call.shape.channels == call.shape.out_channels;
}

inline int vector_width(const ConvolutionCall& call) { return is_vector(call) ? 16 / int(value_bytes(call.dtype)) : 1; }

// launch_convolution for kernels of one vector width or another.
template <class F, class... Rest>
int launch_depthwise(const ConvolutionCall& call, int64_t blocks, size_t shared_bytes, void* stream, F kernel_of,
                     const Rest&... arguments) {
  return launch_convolution(
      call.dtype, blocks, convolution_threads, shared_bytes, stream,
      [&](auto type) {
        constexpr int V = full_vector<typename decltype(type)::type>;
        return is_vector(call) ? kernel_of(type, std::integral_constant<int, V>{})
                               : kernel_of(type, std::integral_constant<int, 1>{});
      },
      call, arguments...);
}

}  // namespace depthwise
}  // namespace fastdl::cuda
