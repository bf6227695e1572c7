// The pointwise convolution of act(norm(x)), and the moments of its output by channel.
#include "convolution_pointwise.cuh"

namespace fastdl::cuda {
namespace pointwise_forward {

using namespace pointwise;

template <class T>
inline constexpr int stage_values = (tile_rows + tile_columns) * pitch<T>;
template <class T>
inline constexpr size_t shared_bytes = 2 * stage_values<T> * sizeof(T);
static_assert(tile_rows * column_pitch * sizeof(float) <= shared_bytes<float>);
static_assert(tile_rows * column_pitch * 2 <= shared_bytes<half_bits>);

// The moments of a column of `rows` values, by four neighbouring threads that share them out. All four have the result.
template <class T>
__device__ __forceinline__ Moments column_moments(const T* column, int rows) {
  const int part = int(threadIdx.x) % 4;
  const auto add_up = [](float value) {
    value += device::shuffle_xor(value, 1);
    return value + device::shuffle_xor(value, 2);
  };
  // Deviations from the first value give a mean, and those from the mean what it lacks, and squares in which nothing cancels.
  const float first = device::widen(column[0]);
  float sum = 0.0f, squares = 0.0f;
  for (int row = part; row < rows; row += 4) sum += device::widen(column[row * column_pitch]) - first;
  const float high = first + add_up(sum) / float(rows);
  sum = 0.0f;
  for (int row = part; row < rows; row += 4) {
    const float deviation = device::widen(column[row * column_pitch]) - high;
    sum += deviation;
    squares = fmaf(deviation, deviation, squares);
  }
  sum = add_up(sum);
  const float low = sum / float(rows);
  return {float(rows), high, low, add_up(squares) - sum * low};
}

template <class T>
__global__ void __launch_bounds__(convolution_threads, 2) kernel(const ConvolutionCall call, const RowShare share) {
  DYNAMIC_SHARED(unsigned char, shared);
  STATIC_SHARED(float, bias, [tile_columns]);
  T* const stages = reinterpret_cast<T*>(shared);
  constexpr int V = full_vector<T>;
  const ConvolutionShape& shape = call.shape;
  const T *const input = static_cast<const T*>(call.input), *const weight = static_cast<const T*>(call.weight);
  const int64_t column_blocks = column_blocks_of(shape.out_channels), block = blockIdx.x / column_blocks;
  const int64_t first_column = blockIdx.x % column_blocks * tile_columns;
  const int columns = int(min(shape.out_channels - first_column, int64_t(tile_columns)));
  const BlockRows rows = rows_of_block(share, block);
  const int thread = int(threadIdx.x), warp = thread / 32, warp_row = warp / 2 * warp_tile, warp_column = warp % 2 * warp_tile;
  const int own_row = thread / pieces, own_value = thread % pieces * V;  // of the tiles that this thread copies
  constexpr int row_step = convolution_threads / pieces;
  Moments total{0.0f, 0.0f, 0.0f, 0.0f};
  if (thread < tile_columns) bias[thread] = thread < columns ? bias_of(call.bias, first_column + thread) : 0.0f;

  for (int64_t first = rows.begin; first < rows.end; first += tile_rows) {
    const int count = int(min(rows.end - first, int64_t(tile_rows)));
    const auto fetch = [&](int64_t channel, int stage) {
      T *const a = stages + stage * stage_values<T>, *const b = a + tile_rows * pitch<T>;
      const int64_t at = channel + own_value, left = shape.channels - at;
      // Not unrolled: addresses took the registers of the sums.
#pragma unroll 1
      for (int row = own_row; row < tile_rows; row += row_step)
        copy_piece(a + row * pitch<T> + own_value, input + (row < count ? input_row(shape, first + row) * shape.channels + at : 0),
                   row < count ? left : 0, call.vector_in, input);
#pragma unroll 1
      for (int column = own_row; column < tile_columns; column += row_step) {
        copy_piece(b + column * pitch<T> + own_value, weight + (first_column + column) * shape.channels + at,
                   column < columns ? left : 0, call.vector_in, weight);
      }
      device::cp_async_commit();
    };
    WarpTile d;
    clear(d);
    fetch(0, 0);
    int stage = 0;
#pragma unroll 1
    for (int64_t channel = 0; channel < shape.channels; channel += depth<T>, stage ^= 1) {
      T *const a = stages + stage * stage_values<T>, *const b = a + tile_rows * pitch<T>;
      device::cp_async_wait<0>();
      // What this thread copied itself. Channels beyond the last meet a weight of 0.
#pragma unroll 1
      for (int value = own_value; value < own_value + V && channel + value < shape.channels; value += entered) {
        Channels<entered> channels;
        channels.load(call.prologue, shape.channels, rows.segment, channel + value);
#pragma unroll 1
        for (int row = own_row; row < count; row += row_step)
          enter<T>(call.prologue, channels, reinterpret_cast<Pack<T, entered>*>(a + row * pitch<T> + value));
      }
      device::block_barrier();
      if (channel + depth<T> < shape.channels) fetch(channel + depth<T>, stage ^ 1);
      multiply<T, false, false, depth<T>, pitch<T>, pitch<T>>(d, a + warp_row * pitch<T>, b + warp_column * pitch<T>);
    }
    device::block_barrier();

    T* const out = stages;
#pragma unroll
    for (int n = 0; n < 4; ++n) {
      const int column = warp_column + warp_tile_column(n);
      const float bias_0 = bias[column], bias_1 = bias[column + 1];
#pragma unroll
      for (int i = 0; i < 2; ++i)
#pragma unroll
        for (int e = 0; e < 4; e += 2) {
          const Pack<T, 2> pair{device::narrow<T>(d[i][n][e] + bias_0), device::narrow<T>(d[i][n][e + 1] + bias_1)};
          device::store_vector(out + (warp_row + warp_tile_row(i, e)) * column_pitch + column, pair);
        }
    }
    device::block_barrier();
    T* const to = static_cast<T*>(call.output) + first * shape.out_channels + first_column;
    constexpr int out_pieces = tile_columns / V;
#pragma unroll 1
    for (int i = thread; i < count * out_pieces; i += convolution_threads) {
      const int row = i / out_pieces, column = i % out_pieces * V;
      const auto piece = device::load_vector<Pack<T, V>>(out + row * column_pitch + column);
      T* const at = to + row * shape.out_channels + column;
      if (call.vector_out) {
        if (column < columns) device::store_vector<device::Cache::evict_first>(at, piece);
      } else {
#pragma unroll
        for (int j = 0; j < V; ++j)
          if (column + j < columns) at[j] = piece[j];
      }
    }
    if (call.partial_moments) total = merge(total, column_moments(out + thread / 4, count));
    device::block_barrier();
  }
  if (call.partial_moments && thread % 4 == 0 && thread / 4 < columns)
    call.partial_moments[block * shape.out_channels + first_column + thread / 4] = {
        double(total.count), double(total.high) + double(total.low), double(total.squares)};
}

}  // namespace pointwise_forward

RowShare pointwise_forward_share(const ConvolutionCall& call, const Target& target) {
  return share_pointwise(call, call.shape.out_channels, target);
}

int launch_pointwise_forward(const ConvolutionCall& call, const RowShare& share, void* stream) {
  const int64_t blocks = share.blocks() * divide_up(call.shape.out_channels, pointwise::tile_columns);
  const size_t bytes =
      call.dtype == Dtype::float32 ? pointwise_forward::shared_bytes<float> : pointwise_forward::shared_bytes<half_bits>;
  return launch_convolution(
      call.dtype, blocks, convolution_threads, bytes, stream,
      [](auto type) { return &pointwise_forward::kernel<typename decltype(type)::type>; }, call, share);
}

}  // namespace fastdl::cuda
