// Backward of the pointwise convolution by its weight and bias: sums over rows of grad_output times act(norm(x)), which is computed
// again. A block has a tile of the weight and a run of rows, and leaves partial sums.
#include "convolution_pointwise.cuh"

namespace fastdl::cuda {
namespace pointwise_weight {

using namespace pointwise;

inline constexpr int threads = 128, step_rows = 32, tile_values = step_rows * column_pitch;

template <class T>
__global__ void __launch_bounds__(threads, 4) kernel(const ConvolutionCall call, const RowShare share) {
  STATIC_SHARED(T, stages, [2][2][tile_values]);
  constexpr int V = full_vector<T>, column_pieces = tile_columns / V, row_step = threads / column_pieces;
  const ConvolutionShape& shape = call.shape;
  const T *const gradient = static_cast<const T*>(call.gradient), *const input = static_cast<const T*>(call.input);
  const int64_t across = column_blocks_of(shape.channels), down = column_blocks_of(shape.out_channels);
  const int64_t rank = blockIdx.x / (across * down), first_line = blockIdx.x / across % down * tile_columns;
  const int64_t first_column = blockIdx.x % across * tile_columns;
  const int lines = int(min(shape.out_channels - first_line, int64_t(tile_columns)));
  const int columns = int(min(shape.channels - first_column, int64_t(tile_columns)));
  const BlockRows rows = rows_of_block(share, rank);
  const int64_t positions = shape.out_height * shape.out_width;
  const int thread = int(threadIdx.x), warp = thread / 32, warp_line = warp / 2 * warp_tile, warp_column = warp % 2 * warp_tile;
  const int own_row = thread / column_pieces, own_value = thread % column_pieces * V;
  const bool adds_bias = call.bias_sums && first_column == 0 && thread < lines;

  const auto fetch = [&](int64_t first, int stage) {
#pragma unroll
    for (int i = 0; i < step_rows / row_step; ++i) {
      const int row = own_row + i * row_step;
      const bool present = first + row < rows.end;
      copy_piece(stages[stage][0] + row * column_pitch + own_value,
                 gradient + (first + row) * shape.out_channels + first_line + own_value, present ? lines - own_value : 0,
                 call.vector_out, gradient);
      copy_piece(stages[stage][1] + row * column_pitch + own_value,
                 input + (present ? input_row(shape, first + row) * shape.channels + first_column + own_value : 0),
                 present ? columns - own_value : 0, call.vector_in, input);
    }
    device::cp_async_commit();
  };
  WarpTile d;
  clear(d);
  float bias = 0.0f;
  fetch(rows.begin, 0);
  int stage = 0;
#pragma unroll 1
  for (int64_t first = rows.begin; first < rows.end; first += step_rows, stage ^= 1) {
    device::cp_async_wait<0>();
    // What this thread copied itself.
#pragma unroll 1
    for (int value = own_value; value < own_value + V && value < columns; value += entered) {
      Channels<entered> channels;
      channels.load(call.prologue, shape.channels, first / positions, first_column + value);
      int64_t sample_end = (first / positions + 1) * positions;
#pragma unroll 1
      for (int row = own_row; row < step_rows && first + row < rows.end; row += row_step) {
        if (call.prologue.by_sample && first + row >= sample_end) {
          const int64_t sample = (first + row) / positions;
          channels.load(call.prologue, shape.channels, sample, first_column + value);
          sample_end = (sample + 1) * positions;
        }
        enter<T>(call.prologue, channels, reinterpret_cast<Pack<T, entered>*>(stages[stage][1] + row * column_pitch + value));
      }
    }
    device::block_barrier();
    if (first + step_rows < rows.end) fetch(first + step_rows, stage ^ 1);
    multiply<T, true, true, step_rows, column_pitch, column_pitch>(d, stages[stage][0] + warp_line, stages[stage][1] + warp_column);
    if (adds_bias) {
      float sum = 0.0f;
#pragma unroll 4
      for (int row = 0; row < step_rows; ++row) sum += device::widen(stages[stage][0][row * column_pitch + thread]);
      bias += sum;
    }
  }
  float* const to = call.weight_sums + rank * shape.out_channels * shape.channels + first_line * shape.channels + first_column;
#pragma unroll
  for (int i = 0; i < 2; ++i)
#pragma unroll
    for (int n = 0; n < 4; ++n)
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const int line = warp_line + warp_tile_row(i, e), column = warp_column + warp_tile_column(n) + e % 2;
        if (line < lines && column < columns) to[line * shape.channels + column] = d[i][n][e];
      }
  if (adds_bias) call.bias_sums[rank * shape.out_channels + first_line + thread] = bias;
}

}  // namespace pointwise_weight

RowShare pointwise_weight_share(const ConvolutionCall& call, const Target& target) {
  const ConvolutionShape& shape = call.shape;
  const int64_t tiles = divide_up(shape.channels, pointwise::tile_columns) * divide_up(shape.out_channels, pointwise::tile_columns);
  // Each rank leaves a whole weight's sums: no more of them than keep the machine busy.
  return share_rows(shape.samples, shape.out_height * shape.out_width, false, pointwise_weight::step_rows, tiles,
                    std::numeric_limits<int32_t>::max(), target);
}

int launch_pointwise_weight(const ConvolutionCall& call, const RowShare& share, void* stream) {
  const int64_t blocks = share.blocks() * divide_up(call.shape.channels, pointwise::tile_columns) *
                         divide_up(call.shape.out_channels, pointwise::tile_columns);
  return launch_convolution(
      call.dtype, blocks, pointwise_weight::threads, 0, stream,
      [](auto type) { return &pointwise_weight::kernel<typename decltype(type)::type>; }, call, share);
}

}  // namespace fastdl::cuda
