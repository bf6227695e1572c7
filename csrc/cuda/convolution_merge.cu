// The small kernels around the convolutions: coefficients by channel from statistics, and what blocks left, added up in double and
// in a fixed order.
#include "convolution_rows.cuh"

namespace fastdl::cuda {
namespace convolution_merge {

inline constexpr int threads = 128;

struct ChannelOfSample {
  int64_t sample, channel, slab;
};

__device__ __forceinline__ ChannelOfSample channel_of_sample(const Slabs& slabs, int64_t index) {
  const int64_t sample = index / slabs.channels, channel = index % slabs.channels;
  return {sample, channel, sample * slabs.groups + channel / (slabs.channels / slabs.groups)};
}

__device__ __forceinline__ Center center_of_slab(const Slabs& slabs, const double* statistics, float eps, int64_t slab) {
  return center_of(statistics[slab], statistics[slabs.samples * slabs.groups + slab], eps);
}

__global__ void __launch_bounds__(threads) coefficients(const Slabs slabs, const double* const statistics, const Parameter weight,
                                                        const Parameter bias, const float eps, ChannelCoefficients* const to) {
  const int64_t index = int64_t(blockIdx.x) * threads + threadIdx.x;
  if (index >= slabs.samples * slabs.channels) return;
  const ChannelOfSample at = channel_of_sample(slabs, index);
  const Center center = center_of_slab(slabs, statistics, eps, at.slab);
  const float scale = center.reciprocal_deviation * weight_of(weight, at.channel);
  device::store_vector(to + index, ChannelCoefficients{center.high, center.low, scale, bias_of(bias, at.channel)});
}

// One block a few neighbouring columns (of a sample's channels), whose lanes share out the blocks that left sums.
inline constexpr int columns = 32, most_lanes = 32;

__global__ void __launch_bounds__(columns* most_lanes)
    totals(const Slabs slabs, const ChannelSums* const sums, const int64_t blocks_per_segment, const int64_t segments,
           const double* const statistics, const float eps, PartialSums* const to) {
  STATIC_SHARED(PartialSums, scratch, [most_lanes][columns]);
  const int column = int(threadIdx.x) % columns, lane = int(threadIdx.x) / columns, lanes = int(blockDim.x) / columns;
  const int64_t index = int64_t(blockIdx.x) * columns + column;
  const bool present = index < slabs.samples * slabs.channels;
  const ChannelOfSample at = channel_of_sample(slabs, present ? index : 0);
  PartialSums total{0.0, 0.0};
  // Segments are samples, or all of them one.
  const int64_t first = segments > 1 ? at.sample * blocks_per_segment : 0;
  if (present)
    for (int64_t block = lane; block < blocks_per_segment; block += lanes) {
      const ChannelSums part = sums[(first + block) * slabs.channels + at.channel];
      total = {total.gradient + double(part.gradient), total.product + double(part.product)};
    }
  scratch[lane][column] = total;
  for (int half = lanes / 2; half > 0; half /= 2) {
    device::block_barrier();
    if (lane < half) {
      const PartialSums other = scratch[lane + half][column], mine = scratch[lane][column];
      scratch[lane][column] = {mine.gradient + other.gradient, mine.product + other.product};
    }
  }
  if (lane > 0 || !present) return;
  total = scratch[0][column];
  // Products were with x - mean; normalised values are that over the deviation.
  const double reciprocal = double(center_of_slab(slabs, statistics, eps, at.slab).reciprocal_deviation);
  to[index] = {total.gradient, total.product * reciprocal};
}

// One warp a slab: the means of w gu and of w gu xhat, and from them what each channel takes.
__global__ void __launch_bounds__(threads)
    feedback(const Slabs slabs, const PartialSums* const totals, const double* const statistics, const Parameter weight,
             const float eps, ChannelFeedback* const to) {
  const int64_t slab = (int64_t(blockIdx.x) * threads + threadIdx.x) / 32;
  if (slab >= slabs.samples * slabs.groups) return;
  const int lane = int(threadIdx.x) % 32;
  const int64_t width = slabs.channels / slabs.groups, sample = slab / slabs.groups, first = slab % slabs.groups * width;
  double gradient = 0.0, product = 0.0;
  for (int64_t channel = first + lane; channel < first + width; channel += 32) {
    const double w = double(weight_of(weight, channel));
    const PartialSums total = totals[sample * slabs.channels + channel];
    gradient += w * total.gradient;
    product += w * total.product;
  }
  for (int distance = 16; distance > 0; distance /= 2) {
    gradient += device::shuffle_xor(gradient, distance);
    product += device::shuffle_xor(product, distance);
  }
  const double d = double(center_of_slab(slabs, statistics, eps, slab).reciprocal_deviation);
  const ChannelFeedback all{float(-d * d * (product / slabs.count)), float(-d * (gradient / slabs.count))};
  for (int64_t channel = first + lane; channel < first + width; channel += 32) to[sample * slabs.channels + channel] = all;
}

__global__ void __launch_bounds__(threads) norm_parameters(const Slabs slabs, const PartialSums* const totals,
                                                           const ParameterGradient weight, const ParameterGradient bias) {
  const int64_t channel = int64_t(blockIdx.x) * threads + threadIdx.x;
  if (channel >= slabs.channels) return;
  PartialSums sum{0.0, 0.0};
  for (int64_t sample = 0; sample < slabs.samples; ++sample) {
    const PartialSums part = totals[sample * slabs.channels + channel];
    sum = {sum.gradient + part.gradient, sum.product + part.product};
  }
  if (weight.values) write(weight.values, weight.dtype, channel, sum.product);
  if (bias.values) write(bias.values, bias.dtype, channel, sum.gradient);
}

__global__ void __launch_bounds__(threads)
    sum_of_ranks(const float* const sums, const int64_t ranks, const ParameterGradient to, const int64_t count) {
  const int64_t index = int64_t(blockIdx.x) * threads + threadIdx.x;
  if (index >= count) return;
  double sum = 0.0;
#pragma unroll 8
  for (int64_t rank = 0; rank < ranks; ++rank) sum += double(sums[rank * count + index]);
  write(to.values, to.dtype, index, sum);
}

// One thread an element.
template <class... Parameters, class... Arguments>
int launch_elements(void (*kernel)(Parameters...), int64_t count, void* stream, const Arguments&... arguments) {
  const int64_t blocks = divide_up(count, threads);
  if (blocks > std::numeric_limits<int32_t>::max()) return invalid_convolution;
  return device::launch(kernel, dim3(unsigned(blocks)), dim3(threads), 0, static_cast<device::Stream>(stream), arguments...);
}

}  // namespace convolution_merge

int launch_channel_coefficients(const Slabs& slabs, const double* statistics, const Parameter& weight, const Parameter& bias,
                                float eps, ChannelCoefficients* coefficients, void* stream) {
  return convolution_merge::launch_elements(&convolution_merge::coefficients, slabs.samples * slabs.channels, stream, slabs,
                                            statistics, weight, bias, eps, coefficients);
}

int launch_channel_totals(const ConvolutionCall& call, const Slabs& slabs, const RowShare& share, PartialSums* totals,
                          const double* statistics, float eps, void* stream) {
  using namespace convolution_merge;
  unsigned lanes = 1;
  while (lanes < most_lanes && lanes < share.blocks_per_segment) lanes *= 2;
  const int64_t blocks = divide_up(slabs.samples * slabs.channels, columns);
  if (blocks > std::numeric_limits<int32_t>::max()) return invalid_convolution;
  const ChannelSums* const sums = call.channel_sums;
  return device::launch(&convolution_merge::totals, dim3(unsigned(blocks)), dim3(columns * lanes), 0,
                        static_cast<device::Stream>(stream), slabs, sums, share.blocks_per_segment, share.segments, statistics, eps,
                        totals);
}

int launch_channel_feedback(const Slabs& slabs, const PartialSums* totals, const double* statistics, const Parameter& weight,
                            float eps, ChannelFeedback* feedback, void* stream) {
  return convolution_merge::launch_elements(&convolution_merge::feedback, slabs.samples * slabs.groups * 32, stream, slabs, totals,
                                            statistics, weight, eps, feedback);
}

int launch_norm_parameter_gradients(const Slabs& slabs, const PartialSums* totals, const ParameterGradient& weight,
                                    const ParameterGradient& bias, void* stream) {
  return convolution_merge::launch_elements(&convolution_merge::norm_parameters, slabs.channels, stream, slabs, totals, weight,
                                            bias);
}

int launch_sum_of_ranks(const float* sums, int64_t ranks, const ParameterGradient& gradient, int64_t count, void* stream) {
  return convolution_merge::launch_elements(&convolution_merge::sum_of_ranks, count, stream, sums, ranks, gradient, count);
}

}  // namespace fastdl::cuda
