// The small kernels between and after the large ones: joining what blocks left in the workspace, in double and in a fixed order.
#include "elements.cuh"
#include "norm_call.h"

namespace fastdl::cuda {
namespace norm_merge {

// A block is 32 columns (slabs or channels), which lie next to each other in memory, by up to 32 lanes that share the rows out.
constexpr int columns = 32, most_lanes = 32;

__device__ __forceinline__ PartialMoments merge(const PartialMoments& a, const PartialMoments& b) {
  if (a.count == 0.0) return b;
  if (b.count == 0.0) return a;
  const double count = a.count + b.count, distance = b.mean - a.mean;
  return {count, a.mean + distance * (b.count / count), a.squares + b.squares + distance * distance * (a.count * b.count / count)};
}

// Sums over the lanes of a column, for lane 0. Every thread comes.
template <class Value, class Join>
__device__ __forceinline__ Value join_lanes(Value value, Value (*scratch)[columns], int column, int lane, Join join) {
  scratch[lane][column] = value;
  for (int half = int(blockDim.x) / columns / 2; half > 0; half /= 2) {
    device::block_barrier();
    if (lane < half) scratch[lane][column] = join(scratch[lane][column], scratch[lane + half][column]);
  }
  return scratch[lane][column];
}

__global__ void __launch_bounds__(columns* most_lanes) moments(const Call call) {
  DYNAMIC_SHARED(PartialMoments, shared);
  const int column = threadIdx.x % columns, lane = threadIdx.x / columns, lanes = blockDim.x / columns;
  const int64_t slab = int64_t(blockIdx.x) * columns + column;
  PartialMoments total{0.0, 0.0, 0.0};
  if (slab < call.slabs)
    for (int rank = lane; rank < call.ranks; rank += lanes) total = merge(total, call.partial_moments[rank * call.slabs + slab]);
  total = join_lanes(total, reinterpret_cast<PartialMoments(*)[columns]>(shared), column, lane, merge);
  if (lane == 0 && slab < call.slabs) {
    call.statistics[slab] = total.mean;
    call.statistics[call.slabs + slab] = total.squares / total.count;
  }
}

__device__ __forceinline__ PartialSums add(const PartialSums& a, const PartialSums& b) {
  return {a.gradient + b.gradient, a.product + b.product};
}

__device__ __forceinline__ void write_gradients(const Call& call, int64_t channel, const PartialSums& total) {
  if (call.weight_gradient.values) write(call.weight_gradient.values, call.weight_gradient.dtype, channel, total.product);
  if (call.bias_gradient.values) write(call.bias_gradient.values, call.bias_gradient.dtype, channel, total.gradient);
}

__global__ void __launch_bounds__(columns* most_lanes) sums(const Call call, PartialSums* const means) {
  DYNAMIC_SHARED(PartialSums, shared);
  const int column = threadIdx.x % columns, lane = threadIdx.x / columns, lanes = blockDim.x / columns;
  const int64_t slab = int64_t(blockIdx.x) * columns + column;
  PartialSums total{0.0, 0.0};
  if (slab < call.slabs)
    for (int rank = lane; rank < call.ranks; rank += lanes) total = add(total, call.partial_sums[rank * call.slabs + slab]);
  total = join_lanes(total, reinterpret_cast<PartialSums(*)[columns]>(shared), column, lane, add);
  if (lane > 0 || slab >= call.slabs) return;
  double factor = call.constant ? 0.0 : 1.0 / call.count;
  if (call.slab_is_channel) {
    write_gradients(call, slab, total);
    factor *= double(weight_of(call.weight, slab));
  }
  means[slab] = call.constant ? PartialSums{0.0, 0.0} : PartialSums{total.gradient * factor, total.product * factor};
}

__global__ void __launch_bounds__(columns* most_lanes) parameter_gradients(const Call call, int64_t outer, int64_t pieces) {
  DYNAMIC_SHARED(PartialSums, shared);
  const int column = threadIdx.x % columns, lane = threadIdx.x / columns, lanes = blockDim.x / columns;
  const int64_t channel = int64_t(blockIdx.x) * columns + column;
  PartialSums total{0.0, 0.0};
  if (channel < call.channels)
    for (int64_t row = lane; row < outer; row += lanes) {
      const ChannelSums* const from = call.channel_sums + (row * call.channels + channel) * pieces;
      for (int64_t piece = 0; piece < pieces; ++piece)
        total = add(total, {double(from[piece].gradient), double(from[piece].product)});
    }
  total = join_lanes(total, reinterpret_cast<PartialSums(*)[columns]>(shared), column, lane, add);
  if (lane == 0 && channel < call.channels) write_gradients(call, channel, total);
}

__global__ void __launch_bounds__(columns* most_lanes)
    copy_statistics(const Parameter mean, const Parameter variance, double* const statistics, const int64_t channels) {
  const int64_t channel = int64_t(blockIdx.x) * columns + threadIdx.x;
  if (channel >= channels) return;
  statistics[channel] = read<double>(mean, channel);
  statistics[channels + channel] = read<double>(variance, channel);
}

// A grid for `count` columns, and a power of two of lanes for `rows`.
struct Shape {
  dim3 grid, block;

  Shape(int64_t count, int64_t rows) : grid(unsigned((count + columns - 1) / columns)) {
    unsigned lanes = 1;
    while (lanes < most_lanes && lanes < rows) lanes *= 2;
    block = dim3(columns * lanes);
  }
};

}  // namespace norm_merge

int launch_merge_moments(const Call& call, void* stream) {
  const norm_merge::Shape shape(call.slabs, call.ranks);
  return device::launch(&norm_merge::moments, shape.grid, shape.block, shape.block.x * sizeof(PartialMoments),
                        static_cast<device::Stream>(stream), call);
}

int launch_copy_statistics(const Parameter& mean, const Parameter& variance, double* statistics, int64_t channels, void* stream) {
  const norm_merge::Shape shape(channels, 1);
  return device::launch(&norm_merge::copy_statistics, shape.grid, shape.block, 0, static_cast<device::Stream>(stream), mean,
                        variance, statistics, channels);
}

int launch_merge_sums(const Call& call, PartialSums* means, void* stream) {
  const norm_merge::Shape shape(call.slabs, call.ranks);
  return device::launch(&norm_merge::sums, shape.grid, shape.block, shape.block.x * sizeof(PartialSums),
                        static_cast<device::Stream>(stream), call, means);
}

int launch_parameter_gradients(const Call& call, int64_t outer, int64_t pieces, void* stream) {
  const norm_merge::Shape shape(call.channels, outer);
  return device::launch(&norm_merge::parameter_gradients, shape.grid, shape.block, shape.block.x * sizeof(PartialSums),
                        static_cast<device::Stream>(stream), call, outer, pieces);
}

}  // namespace fastdl::cuda
