// Forward: the norm's statistics (unless they are given), its coefficients by channel, the convolution, and the merging of its
// output's moments. Backward: the weight's gradient, that of the affine map's output with the norm's sums, and what these send
// back.
#include <limits>

#include "convolution.h"
#include "device.cuh"
#include "norm_act_conv.h"
#include "norm_plan.h"

namespace fastdl::cuda {
namespace {

constexpr int largest_kernel = 7;

// Pieces of the workspace, one after another.
struct Pieces {
  char* at;
  size_t used = 0;

  explicit Pieces(void* workspace) : at(static_cast<char*>(workspace)) {}
  template <class T>
  T* take(int64_t count) {
    T* const piece = at ? reinterpret_cast<T*>(at + used) : nullptr;
    used += (size_t(count) * sizeof(T) + 15) / 16 * 16;
    return piece;
  }
};

bool has_norm(const NormActConv& call) { return call.num_groups != norm_by_nothing; }
bool is_by_sample(const NormActConv& call) { return call.num_groups > 0; }
bool is_empty(const NormActConv& call) { return call.shape.samples == 0; }

Slabs slabs_of(const NormActConv& call) {
  const ConvolutionShape& shape = call.shape;
  const int64_t samples = is_by_sample(call) ? shape.samples : 1, groups = is_by_sample(call) ? call.num_groups : shape.channels;
  return {samples, shape.channels, groups, double(shape.rows()) * double(shape.channels) / (double(samples) * double(groups))};
}

bool is_aligned(const void* pointer) { return reinterpret_cast<uintptr_t>(pointer) % 16 == 0; }

ConvolutionCall convolution_of(const NormActConv& call, const void* gradient) {
  const int64_t vector = 16 / int64_t(value_bytes(call.dtype));
  ConvolutionCall made{};
  made.shape = call.shape;
  made.prologue = {nullptr,         is_by_sample(call),    call.constant || !has_norm(call),
                   call.activation, float(call.parameter), call.activation_first};
  made.dtype = call.dtype;
  made.vector_in = call.shape.channels % vector == 0 && is_aligned(call.input) && is_aligned(call.weight);
  made.vector_out = call.shape.out_channels % vector == 0 && is_aligned(gradient);
  made.input = call.input;
  made.weight = call.weight;
  made.gradient = gradient;
  made.bias = call.bias;
  return made;
}

// -- the statistics of the input -------------------------------------------------------------------------------------------------

// As the split path of a norm gathers them (norm_run.cu): partial results by block, then their merging.
struct Gathering {
  Norm norm{};
  Plan plan{};
  Call call{};

  Gathering(const NormActConv& given, const Target& target) {
    const ConvolutionShape& shape = given.shape;
    norm.dtype = given.dtype;
    norm.samples = shape.samples;
    norm.channels = shape.channels;
    norm.positions = shape.height * shape.width;
    norm.channels_last = true;
    norm.input = given.input;
    norm.input_strides = {norm.channels * norm.positions, 1, norm.channels};
    norm.output_strides = norm.residual_strides = norm.input_strides;
    const Task task{norm, is_by_sample(given) ? given.num_groups : norm.channels, !is_by_sample(given), false};
    const Operand input{norm.input, norm.input_strides};
    Target split = target;
    split.path = Path::split;
    plan = make_plan(task, split, false, fits_vectors(task, &input, 1), 1);
    call.input = norm.input;
    call.input_strides = call.residual_strides = call.gradient_strides = call.output_strides = norm.input_strides;
    call.eps = float(given.eps);
    call.parameter = float(given.parameter);
    call.activation = given.activation;
    call.activation_first = given.activation_first;
    call.slab_is_channel = task.across_samples;
    call.step = Step::gather;
    call.ranks = plan.ranks;
    call.slabs = plan.slabs;
    call.channels = norm.channels;
    call.count = plan.count;
  }

  void take(Pieces& pieces) { call.partial_moments = pieces.take<PartialMoments>(plan.ranks * plan.slabs); }

  int run(double* statistics, void* stream) {
    if (!plan.launch.blocks) return 1;  // cudaErrorInvalidValue: no plan fits this machine
    plan.launch.stream = stream;
    call.statistics = statistics;
    set_row_steps(call, plan.rows);
    const int status = launch_rows_forward(plan.launch, call, plan.rows);
    return status != 0 ? status : launch_merge_moments(call, stream);
  }
};

bool is_given(const NormActConv& call) { return call.mean.values && call.variance.values; }

// -- forward ---------------------------------------------------------------------------------------------------------------------

int64_t forward_blocks(const ConvolutionCall& call, const Target& target) {
  return call.shape.depthwise ? depthwise_forward_tiles(call, target).blocks : pointwise_forward_share(call, target).blocks();
}

int launch_forward(const ConvolutionCall& call, const Target& target, void* stream) {
  if (call.shape.depthwise) return launch_depthwise_forward(call, depthwise_forward_tiles(call, target), stream);
  return launch_pointwise_forward(call, pointwise_forward_share(call, target), stream);
}

void take_forward(Pieces& pieces, const NormActConv& call, const Target& target, ConvolutionCall& made,
                  ChannelCoefficients*& coefficients) {
  if (has_norm(call)) coefficients = pieces.take<ChannelCoefficients>(slabs_of(call).samples * call.shape.channels);
  if (call.collect) made.partial_moments = pieces.take<PartialMoments>(forward_blocks(made, target) * call.shape.out_channels);
}

// -- backward --------------------------------------------------------------------------------------------------------------------

int64_t weight_ranks(const ConvolutionCall& call, const Target& target) {
  return call.shape.depthwise ? depthwise_weight_tiles(call, target).blocks : pointwise_weight_share(call, target).blocks();
}

int64_t weight_count(const ConvolutionShape& shape) {
  return shape.out_channels * (shape.depthwise ? int64_t(shape.taps()) : shape.channels);
}

RowShare input_share(const ConvolutionCall& call, const Target& target) {
  return call.shape.depthwise ? depthwise_input_share(call, target) : pointwise_input_share(call, target);
}

struct BackwardWork {
  ChannelCoefficients* coefficients = nullptr;
  PartialSums* totals = nullptr;
  ChannelFeedback* feedback = nullptr;
  bool by_weight, by_input, needs_sums, needs_feedback;

  BackwardWork(const NormActConv& call, const NormActConvGradients& gradients) {
    const bool by_parameters = has_norm(call) && (gradients.norm_weight.values || gradients.norm_bias.values);
    by_weight = gradients.weight.values || gradients.bias.values;
    by_input = gradients.input || by_parameters;
    needs_feedback = gradients.input && has_norm(call) && !call.constant;
    needs_sums = by_parameters || needs_feedback;
  }

  void take(Pieces& pieces, const NormActConv& call, const Target& target, ConvolutionCall& made) {
    const int64_t table = slabs_of(call).samples * call.shape.channels;
    if (has_norm(call)) coefficients = pieces.take<ChannelCoefficients>(table);
    if (by_weight) {
      const int64_t ranks = weight_ranks(made, target);
      made.weight_sums = pieces.take<float>(ranks * weight_count(call.shape));
      made.bias_sums = pieces.take<float>(ranks * call.shape.out_channels);
    }
    if (needs_sums) {
      made.channel_sums = pieces.take<ChannelSums>(input_share(made, target).blocks() * call.shape.channels);
      totals = pieces.take<PartialSums>(table);
    }
    if (needs_feedback) feedback = pieces.take<ChannelFeedback>(table);
  }
};

int fill_zero(const ParameterGradient& gradient, int64_t count, void* stream) {
  const size_t bytes = gradient.dtype == Dtype::float64 ? 8 : value_bytes(gradient.dtype);
  return gradient.values ? device::fill_bytes(gradient.values, 0, size_t(count) * bytes, static_cast<device::Stream>(stream)) : 0;
}

// The first status that is not 0; nothing is queued behind one.
struct Queue {
  int status = 0;

  template <class F>
  void operator()(F queue) {
    if (status == 0) status = queue();
  }
};

int backward_of_nothing(const NormActConv& call, const NormActConvGradients& gradients, void* stream) {
  Queue then;
  then([&] { return fill_zero(gradients.norm_weight, call.shape.channels, stream); });
  then([&] { return fill_zero(gradients.norm_bias, call.shape.channels, stream); });
  then([&] { return fill_zero(gradients.weight, weight_count(call.shape), stream); });
  then([&] { return fill_zero(gradients.bias, call.shape.out_channels, stream); });
  return then.status;
}

}  // namespace

bool is_convolution_served(const ConvolutionSizes& sizes) {
  const auto is_small = [](int64_t value) { return value >= 0 && value <= std::numeric_limits<int16_t>::max(); };
  const int64_t out_height = sizes.height + 2 * sizes.padding_height - sizes.dilation_height * (sizes.kernel_height - 1);
  const int64_t out_width = sizes.width + 2 * sizes.padding_width - sizes.dilation_width * (sizes.kernel_width - 1);
  if (sizes.channels < 1 || sizes.out_channels < 1 || sizes.height < 1 || sizes.width < 1 || out_height < 1 || out_width < 1)
    return false;
  for (int64_t value : {sizes.stride_height, sizes.stride_width, sizes.dilation_height, sizes.dilation_width})
    if (value < 1 || !is_small(value)) return false;
  if (!is_small(sizes.padding_height) || !is_small(sizes.padding_width)) return false;
  // Positions of one image are counted in 32 bits, with room for padding and for a kernel's reach.
  constexpr int64_t most = std::numeric_limits<int32_t>::max() / 4;
  if (sizes.height > most / sizes.width || sizes.height > (most >> 8) || sizes.width > (most >> 8) || out_height > most / out_width)
    return false;
  if (sizes.weight_channels == 1 && sizes.groups == sizes.channels && sizes.out_channels % sizes.channels == 0 && sizes.groups > 1)
    return sizes.kernel_height >= 1 && sizes.kernel_width >= 1 && sizes.kernel_height <= largest_kernel &&
           sizes.kernel_width <= largest_kernel;
  return sizes.groups == 1 && sizes.weight_channels == sizes.channels && sizes.kernel_height == 1 && sizes.kernel_width == 1 &&
         sizes.padding_height == 0 && sizes.padding_width == 0;
}

ConvolutionShape convolution_shape(const ConvolutionSizes& sizes) {
  const auto outputs = [](int64_t size, int64_t kernel, int64_t stride, int64_t padding, int64_t dilation) {
    return (size + 2 * padding - dilation * (kernel - 1) - 1) / stride + 1;
  };
  return {sizes.samples,
          sizes.channels,
          sizes.height,
          sizes.width,
          sizes.out_channels,
          outputs(sizes.height, sizes.kernel_height, sizes.stride_height, sizes.padding_height, sizes.dilation_height),
          outputs(sizes.width, sizes.kernel_width, sizes.stride_width, sizes.padding_width, sizes.dilation_width),
          int(sizes.kernel_height),
          int(sizes.kernel_width),
          int(sizes.stride_height),
          int(sizes.stride_width),
          int(sizes.padding_height),
          int(sizes.padding_width),
          int(sizes.dilation_height),
          int(sizes.dilation_width),
          sizes.groups > 1};
}

int64_t norm_statistics_count(const NormActConv& call) {
  if (!has_norm(call)) return 0;
  return 2 * (is_by_sample(call) ? call.shape.samples * call.num_groups : call.shape.channels);
}

size_t norm_act_conv_forward_workspace(const NormActConv& call, const Target& target) {
  if (is_empty(call)) return 0;
  ConvolutionCall made = convolution_of(call, nullptr);
  ChannelCoefficients* coefficients = nullptr;
  Pieces pieces(nullptr);
  take_forward(pieces, call, target, made, coefficients);
  if (has_norm(call) && !is_given(call)) Gathering(call, target).take(pieces);
  return pieces.used;
}

int norm_act_conv_forward(const NormActConv& call, void* output, double* statistics, void* workspace, const Target& target,
                          void* stream) {
  const int64_t own = norm_statistics_count(call), collected = call.collect ? 2 * call.shape.out_channels : 0;
  Queue then;
  if (is_empty(call)) {
    // Of nothing at all the statistics are 0, or those that were given.
    if (own + collected > 0)
      then([&] {
        return device::fill_bytes(statistics, 0, size_t(own + collected) * sizeof(double), static_cast<device::Stream>(stream));
      });
    if (has_norm(call) && is_given(call))
      then([&] { return launch_copy_statistics(call.mean, call.variance, statistics, call.shape.channels, stream); });
    return then.status;
  }
  ConvolutionCall made = convolution_of(call, nullptr);
  made.output = output;
  ChannelCoefficients* coefficients = nullptr;
  Pieces pieces(workspace);
  take_forward(pieces, call, target, made, coefficients);
  if (has_norm(call)) {
    if (is_given(call)) {
      then([&] { return launch_copy_statistics(call.mean, call.variance, statistics, call.shape.channels, stream); });
    } else {
      Gathering gathering(call, target);
      gathering.take(pieces);
      then([&] { return gathering.run(statistics, stream); });
    }
    then([&] {
      return launch_channel_coefficients(slabs_of(call), statistics, call.norm_weight, call.norm_bias, float(call.eps),
                                         coefficients, stream);
    });
    made.prologue.coefficients = coefficients;
  }
  then([&] { return launch_forward(made, target, stream); });
  if (call.collect) {
    Call merging{};
    merging.ranks = int(forward_blocks(made, target));
    merging.slabs = call.shape.out_channels;
    merging.partial_moments = made.partial_moments;
    merging.statistics = statistics + own;
    then([&] { return launch_merge_moments(merging, stream); });
  }
  return then.status;
}

size_t norm_act_conv_backward_workspace(const NormActConv& call, const NormActConvGradients& gradients, const Target& target) {
  if (is_empty(call)) return 0;
  ConvolutionCall made = convolution_of(call, gradients.output);
  Pieces pieces(nullptr);
  BackwardWork(call, gradients).take(pieces, call, target, made);
  return pieces.used;
}

int norm_act_conv_backward(const NormActConv& call, const double* statistics, const NormActConvGradients& gradients,
                           void* workspace, const Target& target, void* stream) {
  if (is_empty(call)) return backward_of_nothing(call, gradients, stream);
  ConvolutionCall made = convolution_of(call, gradients.output);
  BackwardWork work(call, gradients);
  Pieces pieces(workspace);
  work.take(pieces, call, target, made);
  const Slabs slabs = slabs_of(call);
  const float eps = float(call.eps);
  Queue then;
  if (has_norm(call) && (work.by_weight || work.by_input)) {
    then([&] {
      return launch_channel_coefficients(slabs, statistics, call.norm_weight, call.norm_bias, eps, work.coefficients, stream);
    });
    made.prologue.coefficients = work.coefficients;
  }
  if (work.by_weight) {
    then([&] {
      return call.shape.depthwise ? launch_depthwise_weight(made, depthwise_weight_tiles(made, target), stream)
                                  : launch_pointwise_weight(made, pointwise_weight_share(made, target), stream);
    });
    const int64_t ranks = weight_ranks(made, target);
    if (gradients.weight.values)
      then([&] { return launch_sum_of_ranks(made.weight_sums, ranks, gradients.weight, weight_count(call.shape), stream); });
    if (gradients.bias.values)
      then([&] { return launch_sum_of_ranks(made.bias_sums, ranks, gradients.bias, call.shape.out_channels, stream); });
  }
  if (!work.by_input) return then.status;
  const RowShare share = input_share(made, target);
  const bool gaps = !call.shape.depthwise && call.shape.is_strided();
  made.output = gradients.input;
  made.complete = !work.needs_feedback && !gaps;
  then([&] {
    return call.shape.depthwise ? launch_depthwise_input(made, share, stream) : launch_pointwise_input(made, share, stream);
  });
  if (work.needs_sums) then([&] { return launch_channel_totals(made, slabs, share, work.totals, statistics, eps, stream); });
  if (has_norm(call) && (gradients.norm_weight.values || gradients.norm_bias.values))
    then([&] { return launch_norm_parameter_gradients(slabs, work.totals, gradients.norm_weight, gradients.norm_bias, stream); });
  if (!gradients.input || made.complete) return then.status;
  if (work.needs_feedback) {
    then([&] { return launch_channel_feedback(slabs, work.totals, statistics, call.norm_weight, eps, work.feedback, stream); });
    made.feedback = work.feedback;
  }
  then([&] { return launch_convolution_feedback(made, stream); });
  return then.status;
}

}  // namespace fastdl::cuda
