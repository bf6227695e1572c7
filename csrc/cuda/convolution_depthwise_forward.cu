// The depthwise convolution of act(norm(x)), and the moments of its output by channel.
#include "convolution_depthwise.cuh"

namespace fastdl::cuda {
namespace depthwise_forward {

using namespace depthwise;

// Count, mean and squares of what a thread wrote, by deviations from the first of it.
template <int V>
struct OutputMoments {
  float count = 0.0f, first[V], sum[V] = {}, squares[V] = {};

  __device__ __forceinline__ void add(const float (&values)[V]) {
#pragma unroll
    for (int i = 0; i < V; ++i) {
      if (count == 0.0f) first[i] = values[i];
      const float deviation = values[i] - first[i];
      sum[i] += deviation;
      squares[i] = fmaf(deviation, deviation, squares[i]);
    }
    count += 1.0f;
  }

  __device__ __forceinline__ Moments of(int i) const {
    if (count == 0.0f) return {0.0f, 0.0f, 0.0f, 0.0f};
    const float low = sum[i] / count;
    return {count, first[i], low, squares[i] - sum[i] * low};
  }
};

// Joins the block's moments and writes those of its channels. scratch: (warps, V, vectors).
template <int V>
__device__ __forceinline__ void write_moments(const ConvolutionCall& call, const ThreadChannels& own, const OutputMoments<V>& found,
                                              int64_t block, int64_t first_channel, Moments* scratch) {
  const int warp = int(threadIdx.x) / 32, lane = int(threadIdx.x) % 32, columns = own.vectors * V;
  device::block_barrier();
#pragma unroll
  for (int i = 0; i < V; ++i) {
    Moments m = found.of(i);
    for (int distance = 16; distance >= own.vectors; distance /= 2)
      m = merge(m, {device::shuffle_down(m.count, distance), device::shuffle_down(m.high, distance),
                    device::shuffle_down(m.low, distance), device::shuffle_down(m.squares, distance)});
    if (lane < own.vectors) scratch[warp * columns + i * own.vectors + own.vector] = m;
  }
  device::block_barrier();
  for (int column = int(threadIdx.x); column < columns; column += convolution_threads) {
    if (first_channel + column >= call.shape.out_channels) continue;
    Moments total{0.0f, 0.0f, 0.0f, 0.0f};
    for (int from = 0; from < convolution_threads / 32; ++from)
      total = merge(total, scratch[from * columns + column % V * own.vectors + column / V]);
    call.partial_moments[block * call.shape.out_channels + first_channel + column] = {
        double(total.count), double(total.high) + double(total.low), double(total.squares)};
  }
}

// Shared memory: the weight, (taps, channels), then the input's slots, and at last the moments.
template <class T, int V>
__global__ void __launch_bounds__(convolution_threads, 2) kernel(const ConvolutionCall call, const DepthwiseTiles tiles) {
  DYNAMIC_SHARED(unsigned char, shared);
  const ConvolutionShape& shape = call.shape;
  const int64_t block = blockIdx.x / tiles.column_blocks, column_block = blockIdx.x % tiles.column_blocks;
  const ThreadChannels own = channels_of_thread<V>(shape, tiles.vector_bits, column_block);
  const int columns = own.vectors * V, taps = shape.kernel_height * shape.kernel_width;
  const int64_t first_channel = column_block * columns;
  float* const weights = reinterpret_cast<float*>(shared);
  Pack<T, V>* const slots = reinterpret_cast<Pack<T, V>*>(weights + taps * columns);
  {
    const T* const from = static_cast<const T*>(call.weight) + first_channel * taps;
    const int64_t present = (shape.out_channels - first_channel) * taps;
    for (int i = int(threadIdx.x); i < columns * taps; i += convolution_threads)
      weights[i % taps * columns + i / taps] = i < present ? device::widen(from[i]) : 0.0f;
  }
  Channels<V> channels;
  if (own.active && !call.prologue.by_sample) channels.load(call.prologue, shape.channels, 0, own.channel);
  OutputMoments<V> moments;

  const int64_t first_tile = block * tiles.tiles_per_block, last_tile = min(first_tile + tiles.tiles_per_block, tiles.tiles);
#pragma unroll 1
  for (int64_t index = first_tile; index < last_tile; ++index) {
    const Tile tile = tile_at(shape, tiles, index);
    if (own.active && call.prologue.by_sample) channels.load(call.prologue, shape.channels, tile.sample, own.channel);
    device::block_barrier();  // all have read the slots of the tile before
    bring_input<T, V>(call, tiles, tile, own, channels, slots);
    device::block_barrier();
    if (!own.active) continue;
#pragma unroll 1
    for (int position = own.lane; position < tiles.down.outputs * tiles.across.outputs; position += own.lanes) {
      const int line = position / tiles.across.outputs, column = position % tiles.across.outputs;
      if (line >= tile.lines || column >= tile.columns) continue;
      float sum[V] = {};
      const Pack<T, V>* at =
          slots + (line * tiles.down.position_step * tiles.across.slots + column * tiles.across.position_step) * own.vectors +
          own.vector;
      const float* weight = weights + own.vector * V;
#pragma unroll 1
      for (int down = 0; down < shape.kernel_height; ++down) {
#pragma unroll 1
        for (int across = 0; across < shape.kernel_width; ++across, weight += columns) {
          float x[V], factor[V];
          widen(at[across * tiles.across.tap_step * own.vectors], x);
          load_floats(weight, factor);
#pragma unroll
          for (int i = 0; i < V; ++i) sum[i] = fmaf(x[i], factor[i], sum[i]);
        }
        at += tiles.down.tap_step * tiles.across.slots * own.vectors;
      }
      Pack<T, V> pack;
#pragma unroll
      for (int i = 0; i < V; ++i) {
        pack[i] = device::narrow<T>(sum[i] + bias_of(call.bias, own.out_channel + i));
        sum[i] = device::widen(pack[i]);
      }
      const int64_t row = (tile.sample * shape.out_height + tile.line + line) * shape.out_width + tile.column + column;
      device::store_vector<device::Cache::evict_first>(static_cast<T*>(call.output) + row * shape.out_channels + own.out_channel,
                                                       pack);
      if (call.partial_moments) moments.add(sum);
    }
  }
  if (call.partial_moments)
    write_moments(call, own, moments, block, first_channel, reinterpret_cast<Moments*>(weights + taps * columns));
}

}  // namespace depthwise_forward

int launch_depthwise_forward(const ConvolutionCall& call, const DepthwiseTiles& tiles, void* stream) {
  return depthwise::launch_depthwise(
      call, tiles.blocks * tiles.column_blocks, tiles.shared_bytes, stream,
      [](auto type, auto width) { return &depthwise_forward::kernel<typename decltype(type)::type, decltype(width)::value>; },
      tiles);
}

}  // namespace fastdl::cuda
