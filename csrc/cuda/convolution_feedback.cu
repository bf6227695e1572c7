// The last step of backward by input where the norm's statistics depend on the input, or where a strided pointwise convolution
// leaves positions out: gx = gu scale + (x - mean) by_input + constant, in place.
#include "convolution_positions.cuh"

namespace fastdl::cuda {
namespace convolution_feedback {

template <class T, int V>
__global__ void __launch_bounds__(convolution_threads, 2)
    kernel(const ConvolutionCall call, const RowShare share, const int vector_bits) {
  const ConvolutionShape& shape = call.shape;
  const Prologue& prologue = call.prologue;
  const OwnPositions own = positions_of_thread<V>(shape, share, vector_bits);
  if (!own.active) return;
  Channels<V> channels;
  channels.load(prologue, shape.channels, own.rows.segment, own.channel);
  float by_input[V] = {}, constant[V] = {};
  if (call.feedback) {
    const ChannelFeedback* const from = call.feedback + (prologue.by_sample ? own.rows.segment * shape.channels : 0) + own.channel;
#pragma unroll
    for (int i = 0; i < V; ++i) by_input[i] = from[i].by_input, constant[i] = from[i].constant;
  }
  for_positions(shape, own, [&](int64_t row, int64_t, int line, int column) {
    const int64_t at = row * shape.channels + own.channel;
    T* const to = static_cast<T*>(call.output) + at;
    const bool read = shape.depthwise || (line % shape.stride_height == 0 && column % shape.stride_width == 0);
    float g[V] = {}, x[V], z[V], nothing[V] = {};
    load_values(static_cast<const T*>(call.input) + at, V, true, x);
    leave<T>(prologue, channels, x, nothing, z);
    if (read) {
      const auto pack = device::load_vector<Pack<T, V>>(to);
#pragma unroll
      for (int i = 0; i < V; ++i) g[i] = device::widen(pack[i]);
    } else {
#pragma unroll
      for (int i = 0; i < V; ++i) g[i] = nothing[i];  // NaN where the activation's derivative is
    }
#pragma unroll
    for (int i = 0; i < V; ++i) {
      g[i] *= channels.scale[i];
      // Constants send nothing back, and 0 times a value that is not finite would.
      if (call.feedback) g[i] += fmaf(z[i], by_input[i], constant[i]);
    }
    if (prologue.activation_first) scale_by_slope<sizeof(T) == 4>(prologue.activation, prologue.parameter, g, x);
    store(to, g, 0, V);
  });
}

}  // namespace convolution_feedback

int launch_convolution_feedback(const ConvolutionCall& call, void* stream) {
  const ConvolutionShape& shape = call.shape;
  const int V = call.vector_in ? 16 / int(value_bytes(call.dtype)) : 1;
  const int bits = vector_bits_of(divide_up(shape.channels, V), call.vector_in);
  RowShare share;
  share.segments = call.prologue.by_sample ? shape.samples : 1;
  share.segment_rows = shape.rows() / share.segments;
  // Eight vectors a thread make up for the channels' coefficients.
  share.rows_per_block = 8 * (convolution_threads >> bits);
  share.blocks_per_segment = divide_up(share.segment_rows, share.rows_per_block);
  return launch_convolution(
      call.dtype, position_blocks(shape, share, V, bits), convolution_threads, 0, stream,
      [&](auto type) {
        using T = typename decltype(type)::type;
        return call.vector_in ? &convolution_feedback::kernel<T, full_vector<T>> : &convolution_feedback::kernel<T, 1>;
      },
      call, share, bits);
}

}  // namespace fastdl::cuda
