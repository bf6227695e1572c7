// Backward of the depthwise convolution by its weight and bias: for each tap a sum over output positions of grad_output times
// act(norm(x)), which is computed again. A block leaves partial sums.
#include "convolution_depthwise.cuh"

namespace fastdl::cuda {
namespace depthwise_weight {

using namespace depthwise;

// Shared memory: the tile's gradients (positions, vectors), and the input's slots; at last the sums of each thread.
template <class T, int V>
__global__ void __launch_bounds__(convolution_threads, 2) kernel(const ConvolutionCall call, const DepthwiseTiles tiles) {
  DYNAMIC_SHARED(unsigned char, shared);
  const ConvolutionShape& shape = call.shape;
  const int64_t block = blockIdx.x / tiles.column_blocks, column_block = blockIdx.x % tiles.column_blocks;
  const ThreadChannels own = channels_of_thread<V>(shape, tiles.vector_bits, column_block);
  const int taps = shape.kernel_height * shape.kernel_width, positions = tiles.down.outputs * tiles.across.outputs;
  Pack<T, V>* const gradients = reinterpret_cast<Pack<T, V>*>(shared);
  Pack<T, V>* const slots = gradients + positions * own.vectors;
  Channels<V> channels;
  if (own.active && !call.prologue.by_sample) channels.load(call.prologue, shape.channels, 0, own.channel);

  // A thread has one tap of one vector, and every `shares`-th position.
  const int items = taps * own.vectors, shares = convolution_threads / items;
  const int item = int(threadIdx.x) % items, share = int(threadIdx.x) / items;
  const int tap = item / own.vectors, vector = item % own.vectors;
  const int tap_at =
      tap / shape.kernel_width * tiles.down.tap_step * tiles.across.slots + tap % shape.kernel_width * tiles.across.tap_step;
  float total[V] = {}, bias[V] = {};

  const int64_t first_tile = block * tiles.tiles_per_block, last_tile = min(first_tile + tiles.tiles_per_block, tiles.tiles);
#pragma unroll 1
  for (int64_t index = first_tile; index < last_tile; ++index) {
    const Tile tile = tile_at(shape, tiles, index);
    if (own.active && call.prologue.by_sample) channels.load(call.prologue, shape.channels, tile.sample, own.channel);
    device::block_barrier();  // all have read the tile before
#pragma unroll 1
    for (int position = own.lane; position < positions; position += own.lanes) {
      const int line = position / tiles.across.outputs, column = position % tiles.across.outputs;
      const bool present = own.active && line < tile.lines && column < tile.columns;
      const int64_t row = (tile.sample * shape.out_height + tile.line + line) * shape.out_width + tile.column + column;
      keep(gradients + position * own.vectors + own.vector,
           static_cast<const T*>(call.gradient) + (present ? row * shape.out_channels + own.out_channel : 0), 0, present ? V : 0);
    }
    bring_input<T, V>(call, tiles, tile, own, channels, slots);
    device::block_barrier();
    if (share >= shares) continue;
    // Few terms at a time: a sum of sums loses less.
    float sum[V] = {}, of_gradients[V] = {};
#pragma unroll 1
    for (int position = share; position < positions; position += shares) {
      const int line = position / tiles.across.outputs, column = position % tiles.across.outputs;
      // Beyond the tile gradients are 0, but what stands there may be no number.
      if (line >= tile.lines || column >= tile.columns) continue;
      const int at = line * tiles.down.position_step * tiles.across.slots + column * tiles.across.position_step + tap_at;
      float g[V], x[V];
      widen(gradients[position * own.vectors + vector], g);
      widen(slots[at * own.vectors + vector], x);
#pragma unroll
      for (int i = 0; i < V; ++i) {
        sum[i] = fmaf(g[i], x[i], sum[i]);
        of_gradients[i] += g[i];
      }
    }
#pragma unroll
    for (int i = 0; i < V; ++i) {
      total[i] += sum[i];
      bias[i] += of_gradients[i];
    }
  }

  device::block_barrier();
  float *const totals = reinterpret_cast<float*>(shared), *const biases = totals + V * convolution_threads;
#pragma unroll
  for (int i = 0; i < V; ++i) {
    totals[i * convolution_threads + int(threadIdx.x)] = total[i];
    biases[i * convolution_threads + int(threadIdx.x)] = bias[i];
  }
  device::block_barrier();
  const auto added_up = [&](const float* values, int of_item, int i) {
    double sum = 0.0;
    for (int from = 0; from < shares; ++from) sum += double(values[i * convolution_threads + from * items + of_item]);
    return float(sum);
  };
  const int64_t first_channel = column_block * own.vectors * V;
  for (int i = int(threadIdx.x); i < items * V; i += convolution_threads) {
    const int column = i / taps, of_tap = i % taps;
    if (first_channel + column >= shape.out_channels) continue;
    call.weight_sums[(block * shape.out_channels + first_channel + column) * taps + of_tap] =
        added_up(totals, of_tap * own.vectors + column / V, column % V);
    if (call.bias_sums && of_tap == 0)
      call.bias_sums[block * shape.out_channels + first_channel + column] = added_up(biases, column / V, column % V);
  }
}

}  // namespace depthwise_weight

int launch_depthwise_weight(const ConvolutionCall& call, const DepthwiseTiles& tiles, void* stream) {
  return depthwise::launch_depthwise(
      call, tiles.blocks * tiles.column_blocks, tiles.shared_bytes, stream,
      [](auto type, auto width) { return &depthwise_weight::kernel<typename decltype(type)::type, decltype(width)::value>; },
      tiles);
}

}  // namespace fastdl::cuda
