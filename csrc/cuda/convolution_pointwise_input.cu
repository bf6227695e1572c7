// Backward of the pointwise convolution by its input, through the activation, with the norm's sums by channel.
#include "convolution_pointwise.cuh"

namespace fastdl::cuda {
namespace pointwise_input {

using namespace pointwise;

template <class T>
inline constexpr int stage_values = tile_rows * pitch<T> + depth<T> * column_pitch;
// Later the products in float32, and then the sums.
template <class T>
inline constexpr size_t shared_bytes = std::max(2 * stage_values<T> * sizeof(T), tile_rows * column_pitch * sizeof(float));
static_assert(convolution_threads * full_vector<half_bits> * sizeof(ChannelSums) <= shared_bytes<half_bits>);

template <class T>
__global__ void __launch_bounds__(convolution_threads, 2) kernel(const ConvolutionCall call, const RowShare share) {
  DYNAMIC_SHARED(unsigned char, shared);
  T* const stages = reinterpret_cast<T*>(shared);
  constexpr int V = full_vector<T>, column_pieces = tile_columns / V;
  const ConvolutionShape& shape = call.shape;
  const T *const gradient = static_cast<const T*>(call.gradient), *const weight = static_cast<const T*>(call.weight);
  const int64_t column_blocks = column_blocks_of(shape.channels), block = blockIdx.x / column_blocks;
  const int64_t first_column = blockIdx.x % column_blocks * tile_columns;
  const int columns = int(min(shape.channels - first_column, int64_t(tile_columns)));
  const BlockRows rows = rows_of_block(share, block);
  const int thread = int(threadIdx.x), warp = thread / 32, warp_row = warp / 2 * warp_tile, warp_column = warp % 2 * warp_tile;
  const int own_row = thread / pieces, own_value = thread % pieces * V;
  constexpr int row_step = convolution_threads / pieces;
  // Behind the product: the vector of channels that this thread has.
  const int own_column = thread % column_pieces * V;
  GradientSums<V> sums;

  for (int64_t first = rows.begin; first < rows.end; first += tile_rows) {
    const int count = int(min(rows.end - first, int64_t(tile_rows)));
    const auto fetch = [&](int64_t channel, int stage) {
      T *const a = stages + stage * stage_values<T>, *const b = a + tile_rows * pitch<T>;
      const int64_t at = channel + own_value;
      // Not unrolled: addresses took the registers of the sums.
#pragma unroll 1
      for (int row = own_row; row < tile_rows; row += row_step) {
        copy_piece(a + row * pitch<T> + own_value, gradient + (first + row) * shape.out_channels + at,
                   row < count ? shape.out_channels - at : 0, call.vector_out, gradient);
      }
#pragma unroll 1
      for (int piece = thread; piece < depth<T> * column_pieces; piece += convolution_threads) {
        const int line = piece / column_pieces, column = piece % column_pieces * V;
        copy_piece(b + line * column_pitch + column, weight + (channel + line) * shape.channels + first_column + column,
                   channel + line < shape.out_channels ? columns - column : 0, call.vector_in, weight);
      }
      device::cp_async_commit();
    };
    WarpTile d;
    clear(d);
    fetch(0, 0);
    int stage = 0;
#pragma unroll 1
    for (int64_t channel = 0; channel < shape.out_channels; channel += depth<T>, stage ^= 1) {
      const T *const a = stages + stage * stage_values<T>, *const b = a + tile_rows * pitch<T>;
      device::cp_async_wait<0>();
      device::block_barrier();
      if (channel + depth<T> < shape.out_channels) fetch(channel + depth<T>, stage ^ 1);
      multiply<T, false, true, depth<T>, pitch<T>, column_pitch>(d, a + warp_row * pitch<T>, b + warp_column);
    }
    device::block_barrier();

    float* const products = reinterpret_cast<float*>(shared);
#pragma unroll
    for (int n = 0; n < 4; ++n)
#pragma unroll
      for (int i = 0; i < 2; ++i)
#pragma unroll
        for (int e = 0; e < 4; e += 2)
          device::store_vector(products + (warp_row + warp_tile_row(i, e)) * column_pitch + warp_column + warp_tile_column(n),
                               Pack<float, 2>{d[i][n][e], d[i][n][e + 1]});
    device::block_barrier();
    if (own_column < columns) {
      Channels<V> channels;
      channels.load(call.prologue, shape.channels, rows.segment, first_column + own_column);
#pragma unroll 1
      for (int row = thread / column_pieces; row < count; row += convolution_threads / column_pieces) {
        const int64_t at = input_row(shape, first + row) * shape.channels + first_column + own_column;
        float g[V], x[V], z[V];
        load_floats(products + row * column_pitch + own_column, g);
        load_values(static_cast<const T*>(call.input) + at, columns - own_column, call.vector_in, x);
        leave<T>(call.prologue, channels, x, g, z);
        sums.add(g, z);
        if (!call.output) continue;
        if (call.complete) leave_constant<T>(call.prologue, channels, x, g);
        store_values(static_cast<T*>(call.output) + at, g, columns - own_column, call.vector_in);
      }
    }
    device::block_barrier();
  }
  if (call.channel_sums)
    write_gradient_sums(sums, column_pieces, columns, reinterpret_cast<ChannelSums*>(shared),
                        call.channel_sums + block * shape.channels + first_column);
}

}  // namespace pointwise_input

RowShare pointwise_input_share(const ConvolutionCall& call, const Target& target) {
  return share_pointwise(call, call.shape.channels, target);
}

int launch_pointwise_input(const ConvolutionCall& call, const RowShare& share, void* stream) {
  const int64_t blocks = share.blocks() * divide_up(call.shape.channels, pointwise::tile_columns);
  const size_t bytes =
      call.dtype == Dtype::float32 ? pointwise_input::shared_bytes<float> : pointwise_input::shared_bytes<half_bits>;
  return launch_convolution(
      call.dtype, blocks, convolution_threads, bytes, stream,
      [](auto type) { return &pointwise_input::kernel<typename decltype(type)::type>; }, call, share);
}

}  // namespace fastdl::cuda
