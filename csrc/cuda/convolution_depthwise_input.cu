// Backward of the depthwise convolution by its input, through the activation, with the norm's sums by channel: each input position
// gathers from the outputs that read it.
#include "convolution_depthwise.cuh"
#include "convolution_positions.cuh"

namespace fastdl::cuda {
namespace depthwise_input {

// The output that reads input position `at` through a tap, if there is one.
__device__ __forceinline__ int output_of(int at, int stride, int64_t outputs) {
  if (at < 0) return -1;
  const int output = stride == 1 ? at : at / stride;
  return output * stride == at && output < outputs ? output : -1;
}

// Shared memory: the weight, (taps, channels), where every channel has one output; later the sums of each thread.
template <class T, int V>
__global__ void __launch_bounds__(convolution_threads, 2)
    kernel(const ConvolutionCall call, const RowShare share, const int vector_bits) {
  DYNAMIC_SHARED(unsigned char, shared);
  const ConvolutionShape& shape = call.shape;
  const OwnPositions own = positions_of_thread<V>(shape, share, vector_bits);
  const T *const gradient = static_cast<const T*>(call.gradient), *const weight = static_cast<const T*>(call.weight);
  const int columns = own.vectors * V, taps = shape.kernel_height * shape.kernel_width;
  const int64_t first_channel = own.column_block * columns;
  const int multiplier = int(shape.out_channels / shape.channels);
  float* const weights = reinterpret_cast<float*>(shared);
  if constexpr (V > 1) {
    const int64_t present = (shape.channels - first_channel) * taps;
    for (int i = int(threadIdx.x); i < columns * taps; i += convolution_threads)
      weights[i % taps * columns + i / taps] = i < present ? device::widen(weight[first_channel * taps + i]) : 0.0f;
    device::block_barrier();
  }
  Channels<V> channels;
  if (own.active) channels.load(call.prologue, shape.channels, own.rows.segment, own.channel);
  GradientSums<V> sums;

  for_positions(shape, own, [&](int64_t row, int64_t sample, int line, int column) {
    float g[V] = {}, x[V], z[V];
#pragma unroll 1
    for (int down = 0; down < shape.kernel_height; ++down) {
      const int from_line =
          output_of(line + shape.padding_height - down * shape.dilation_height, shape.stride_height, shape.out_height);
      if (from_line < 0) continue;
#pragma unroll 1
      for (int across = 0; across < shape.kernel_width; ++across) {
        const int from_column =
            output_of(column + shape.padding_width - across * shape.dilation_width, shape.stride_width, shape.out_width);
        if (from_column < 0) continue;
        const int tap = down * shape.kernel_width + across;
        const T* const from =
            gradient + ((sample * shape.out_height + from_line) * shape.out_width + from_column) * shape.out_channels;
        if constexpr (V > 1) {
          float some[V], factor[V];
          load_values(from + own.channel, V, true, some);
          load_floats(weights + tap * columns + int(own.channel - first_channel), factor);
#pragma unroll
          for (int i = 0; i < V; ++i) g[i] = fmaf(some[i], factor[i], g[i]);
        } else {
          for (int64_t out = own.channel * multiplier; out < (own.channel + 1) * multiplier; ++out)
            g[0] = fmaf(device::widen(device::load_vector<T, device::Cache::read_only>(from + out)),
                        device::widen(device::load_vector<T, device::Cache::read_only>(weight + out * taps + tap)), g[0]);
        }
      }
    }
    const int64_t at = row * shape.channels + own.channel;
    load_values(static_cast<const T*>(call.input) + at, V, true, x);
    leave<T>(call.prologue, channels, x, g, z);
    sums.add(g, z);
    if (!call.output) return;
    if (call.complete) leave_constant<T>(call.prologue, channels, x, g);
    store(static_cast<T*>(call.output) + at, g, 0, V);
  });
  if (call.channel_sums)
    write_gradient_sums(sums, own.vectors, int(min(shape.channels - first_channel, int64_t(columns))),
                        reinterpret_cast<ChannelSums*>(shared), call.channel_sums + own.block * shape.channels + first_channel);
}

int bits_of(const ConvolutionCall& call) {
  return vector_bits_of(divide_up(call.shape.channels, depthwise::vector_width(call)), depthwise::is_vector(call));
}

}  // namespace depthwise_input

RowShare depthwise_input_share(const ConvolutionCall& call, const Target& target) {
  const ConvolutionShape& shape = call.shape;
  const int bits = depthwise_input::bits_of(call);
  const int64_t columns = divide_up(shape.channels, int64_t(depthwise::vector_width(call)) << bits);
  return share_rows(shape.samples, shape.height * shape.width, call.prologue.by_sample, 2 * (convolution_threads >> bits), columns,
                    32, target);
}

int launch_depthwise_input(const ConvolutionCall& call, const RowShare& share, void* stream) {
  const int bits = depthwise_input::bits_of(call), V = depthwise::vector_width(call);
  const size_t weights = V > 1 ? size_t(call.shape.taps() * (V << bits)) * sizeof(float) : 0;
  const size_t bytes = std::max(weights, size_t(convolution_threads * V) * sizeof(ChannelSums));
  return depthwise::launch_depthwise(
      call, position_blocks(call.shape, share, V, bits), bytes, stream,
      [](auto type, auto width) { return &depthwise_input::kernel<typename decltype(type)::type, decltype(width)::value>; }, share,
      bits);
}

}  // namespace fastdl::cuda
