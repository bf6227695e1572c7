// conv(act(norm(x))) as ops of torch, in the LibTorch stable ABI: for the calls that norm_act_conv_is_served accepts, reads the
// input where it lies, allocates results and workspace, and queues the work on the device's current stream.
#include <tuple>

#include "cuda_tensors.h"
#include "norm_act_conv.h"

namespace fastdl::cuda {
namespace norm_act_conv_ops {
namespace {

using Ints = std::vector<int64_t>;

ConvolutionSizes sizes_of(const Tensor& input, const Tensor& weight, const Ints& stride, const Ints& padding, const Ints& dilation,
                          int64_t groups) {
  return {input.size(0),  input.size(1),  input.size(2),  input.size(3), weight.size(0),
          weight.size(1), weight.size(2), weight.size(3), stride[0],     stride[1],
          padding[0],     padding[1],     dilation[0],    dilation[1],   groups};
}

bool is_dense_channels_last(const Tensor& tensor) {
  const Geometry geometry(tensor);
  const auto strides = tensor.strides();
  if (!geometry.channels_last) return false;
  for (size_t i = 0; i < strides.size(); ++i)
    if (geometry.sizes[i] > 1 && strides[i] != geometry.dense[i]) return false;
  return true;
}

bool is_served(const Tensor& input, const Tensor& weight, Ints stride, Ints padding, Ints dilation, int64_t groups) {
  if (input.dim() != 4 || weight.dim() != 4 || stride.size() != 2 || padding.size() != 2 || dilation.size() != 2) return false;
  const ScalarType dtype = input.scalar_type();
  if (dtype != ScalarType::Float && dtype != ScalarType::Half && dtype != ScalarType::BFloat16) return false;
  return weight.scalar_type() == dtype && is_dense_channels_last(input) &&
         is_convolution_served(sizes_of(input, weight, stride, padding, dilation, groups));
}

Shape contiguous_strides(const Shape& sizes) {
  Shape strides(sizes.size(), 1);
  for (size_t i = sizes.size() - 1; i > 0; --i) strides[i - 1] = strides[i] * (sizes[i] > 0 ? sizes[i] : 1);
  return strides;
}

Tensor make_contiguous(const Shape& sizes, ScalarType dtype, const Tensor& like) {
  return empty_strided(sizes, contiguous_strides(sizes), dtype, like);
}

Shape sizes_of(const Tensor& tensor) {
  const auto sizes = tensor.sizes();
  return Shape(sizes.begin(), sizes.end());
}

Tensor made_contiguous(const Tensor& given) {
  if (given.is_contiguous()) return given;
  Tensor copy = make_contiguous(sizes_of(given), given.scalar_type(), given);
  torch::stable::copy_(copy, given);
  return copy;
}

// Dense and channels last; torch calls a tensor with one position, or with one channel, contiguous, which is then the same.
Tensor empty_channels_last(const Shape& sizes, const Tensor& like) {
  const int64_t channels = sizes[1], width = sizes[3], height = sizes[2];
  return empty_strided(sizes, {height * width * channels, 1, width * channels, channels}, like.scalar_type(), like);
}

Tensor made_channels_last(const Tensor& given) {
  if (is_dense_channels_last(given)) return given;
  Tensor copy = empty_channels_last(sizes_of(given), given);
  torch::stable::copy_(copy, given);
  return copy;
}

Parameter parameter_of(const MaybeTensor& tensor) {
  if (!tensor) return {nullptr, Dtype::float32, 0};
  return {tensor->const_data_ptr(), dtype_of(*tensor), tensor->stride(0)};
}

// All that forward and backward share.
struct OpCall {
  CurrentDevice place;
  Target target;
  Tensor input, weight;
  NormActConv call{};

  OpCall(const Tensor& given, const MaybeTensor& norm_weight, const MaybeTensor& norm_bias, const Tensor& given_weight,
         const MaybeTensor& bias, const MaybeTensor& running_mean, const MaybeTensor& running_var, const MaybeTensor& known,
         int64_t num_groups, double eps, const std::string& activation, double parameter, bool activation_first, const Ints& stride,
         const Ints& padding, const Ints& dilation, int64_t groups, bool collect)
      : place(given), target(current_target()), input(given), weight(made_contiguous(given_weight)) {
    STD_TORCH_CHECK(is_served(given, given_weight, stride, padding, dilation, groups),
                    "fastdl: norm_act_conv's CUDA kernels serve depthwise and pointwise convolutions of channels-last float32, "
                    "float16 and bfloat16 tensors");
    call.shape = convolution_shape(sizes_of(given, weight, stride, padding, dilation, groups));
    call.dtype = dtype_of(given);
    call.input = input.const_data_ptr();
    call.weight = weight.const_data_ptr();
    call.norm_weight = parameter_of(norm_weight);
    call.norm_bias = parameter_of(norm_bias);
    call.bias = parameter_of(bias);
    call.num_groups = num_groups;
    call.constant = num_groups == norm_by_batch && running_mean && running_var;
    if (call.constant) {
      call.mean = parameter_of(running_mean);
      call.variance = parameter_of(running_var);
    } else if (known && num_groups == norm_by_batch && !activation_first) {
      // Of the input itself, which is not what an activation before the norm leaves.
      const auto* const values = static_cast<const double*>(known->const_data_ptr());
      const int64_t step = known->stride(0);
      call.mean = {values, Dtype::float64, step};
      call.variance = {values + call.shape.channels * step, Dtype::float64, step};
    }
    call.eps = eps;
    call.parameter = parameter;
    call.activation = activation_named(activation);
    call.activation_first = activation_first;
    call.collect = collect;
  }

  // Freed when the op returns: torch gives it only to work that the same stream does later.
  Tensor make_workspace(size_t bytes) const { return make_contiguous({int64_t(bytes)}, ScalarType::Byte, input); }
};

std::tuple<Tensor, Tensor> forward(const Tensor& input, const MaybeTensor& norm_weight, const MaybeTensor& norm_bias,
                                   const Tensor& weight, const MaybeTensor& bias, const MaybeTensor& running_mean,
                                   const MaybeTensor& running_var, const MaybeTensor& known, int64_t num_groups, double eps,
                                   const std::string& activation, double parameter, bool activation_first, const Ints& stride,
                                   const Ints& padding, const Ints& dilation, int64_t groups, bool collect) {
  const OpCall op(input, norm_weight, norm_bias, weight, bias, running_mean, running_var, known, num_groups, eps, activation,
                  parameter, activation_first, stride, padding, dilation, groups, collect);
  const ConvolutionShape& shape = op.call.shape;
  Tensor output = empty_channels_last({shape.samples, shape.out_channels, shape.out_height, shape.out_width}, input);
  Tensor statistics = empty_statistics({norm_statistics_count(op.call) + (collect ? 2 * shape.out_channels : 0)}, input);
  const Tensor workspace = op.make_workspace(norm_act_conv_forward_workspace(op.call, op.target));
  check(norm_act_conv_forward(op.call, address(output), static_cast<double*>(address(statistics)), address(workspace), op.target,
                              op.place.stream),
        "norm_act_conv's forward");
  return {output, statistics};
}

using FiveTensors = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor>;

// A gradient in its parameter's dtype; undefined, None in Python, where it is not wanted.
ParameterGradient make_gradient(const MaybeTensor& parameter, bool needed, Tensor& gradient) {
  if (!parameter || !needed) return {nullptr, Dtype::float32};
  gradient = make_contiguous(sizes_of(*parameter), parameter->scalar_type(), *parameter);
  return {address(gradient), dtype_of(*parameter)};
}

FiveTensors backward(const Tensor& grad_output, const Tensor& input, const MaybeTensor& norm_weight, const MaybeTensor& norm_bias,
                     const Tensor& weight, const MaybeTensor& bias, const MaybeTensor& running_mean, const MaybeTensor& running_var,
                     const MaybeTensor& known, const Tensor& statistics, int64_t num_groups, double eps,
                     const std::string& activation, double parameter, bool activation_first, const Ints& stride,
                     const Ints& padding, const Ints& dilation, int64_t groups, bool collect, const std::vector<bool>& needs) {
  const OpCall op(input, norm_weight, norm_bias, weight, bias, running_mean, running_var, known, num_groups, eps, activation,
                  parameter, activation_first, stride, padding, dilation, groups, collect);
  const ConvolutionShape& shape = op.call.shape;
  const bool has_norm = num_groups != norm_by_nothing;
  const Tensor by_output = made_channels_last(grad_output);
  Tensor by_input, by_norm_weight, by_norm_bias, by_weight, by_bias;
  if (needs[0]) by_input = empty_channels_last({shape.samples, shape.channels, shape.height, shape.width}, input);
  NormActConvGradients gradients{};
  gradients.output = by_output.const_data_ptr();
  gradients.input = needs[0] ? address(by_input) : nullptr;
  gradients.norm_weight = make_gradient(norm_weight, has_norm && needs[1], by_norm_weight);
  gradients.norm_bias = make_gradient(norm_bias, has_norm && needs[2], by_norm_bias);
  gradients.weight = make_gradient(op.weight, needs[3], by_weight);
  gradients.bias = make_gradient(bias, needs[4], by_bias);
  const Tensor workspace = op.make_workspace(norm_act_conv_backward_workspace(op.call, gradients, op.target));
  check(norm_act_conv_backward(op.call, static_cast<const double*>(address(statistics)), gradients, address(workspace), op.target,
                               op.place.stream),
        "norm_act_conv's backward");
  return {by_input, by_norm_weight, by_norm_bias, by_weight, by_bias};
}

}  // namespace
}  // namespace norm_act_conv_ops
}  // namespace fastdl::cuda

STABLE_TORCH_LIBRARY_FRAGMENT(fastdl_cuda, library) {
  library.def(
      "norm_act_conv_is_served(Tensor input, Tensor weight, int[] stride, int[] padding, int[] dilation, int groups) -> bool");
  library.def(
      "norm_act_conv_forward(Tensor input, Tensor? norm_weight, Tensor? norm_bias, Tensor weight, Tensor? bias, "
      "Tensor? running_mean, Tensor? running_var, Tensor? known, int num_groups, float eps, str activation, "
      "float activation_param, bool activation_first, int[] stride, int[] padding, int[] dilation, int groups, bool collect) "
      "-> (Tensor, Tensor)");
  library.def(
      "norm_act_conv_backward(Tensor grad_output, Tensor input, Tensor? norm_weight, Tensor? norm_bias, Tensor weight, "
      "Tensor? bias, Tensor? running_mean, Tensor? running_var, Tensor? known, Tensor statistics, int num_groups, float eps, "
      "str activation, float activation_param, bool activation_first, int[] stride, int[] padding, int[] dilation, int groups, "
      "bool collect, bool[] needs) -> (Tensor, Tensor, Tensor, Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(fastdl_cuda, CUDA, library) {
  library.impl("norm_act_conv_is_served", TORCH_BOX(&fastdl::cuda::norm_act_conv_ops::is_served));
  library.impl("norm_act_conv_forward", TORCH_BOX(&fastdl::cuda::norm_act_conv_ops::forward));
  library.impl("norm_act_conv_backward", TORCH_BOX(&fastdl::cuda::norm_act_conv_ops::backward));
}
