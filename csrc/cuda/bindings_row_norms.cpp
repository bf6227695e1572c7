// The CUDA kernels of layer norm and RMS norm as ops of torch, in the LibTorch stable ABI: reads activations where they lie if
// their rows are contiguous, allocates results and workspace, and queues the work on the device's current stream.
#include <tuple>

#include "../row_norm_tensors.h"
#include "cuda_tensors.h"
#include "row_norm.h"

namespace fastdl::cuda {
namespace row_norm_ops {
namespace {

Tensor make_contiguous(const Shape& sizes, const Shape& strides, const Tensor& like) {
  return empty_strided(sizes, strides, like.scalar_type(), like);
}

RowTensor row_tensor(const RowOperand& operand) { return {operand.tensor.const_data_ptr(), operand.strides}; }

// A weight or bias as the kernels take it: itself, or a copy in float32. One that begins anywhere would cost all of the call's
// tensors their vectors.
MaybeTensor readable(const MaybeTensor& given, const RowGeometry& geometry, ScalarType dtype) {
  if (!given) return std::nullopt;
  const bool is_read = given->scalar_type() == ScalarType::Float || given->scalar_type() == dtype;
  if (is_read && given->is_contiguous() && uintptr_t(given->const_data_ptr()) % 16 == 0) return given;
  Tensor copy = empty_strided(geometry.parameter_sizes, geometry.parameter_strides, ScalarType::Float, *given);
  torch::stable::copy_(copy, *given);
  return copy;
}

Parameter parameter_of(const MaybeTensor& tensor) {
  if (!tensor) return {nullptr, Dtype::float32, 1};
  return {tensor->const_data_ptr(), dtype_of(*tensor), 1};
}

// All that forward and backward of both ops share.
struct RowCall {
  CurrentDevice place;
  RowGeometry geometry;
  RowOperand input;
  MaybeTensor weight, bias;
  RowNorm norm{};

  RowCall(const Tensor& given, const MaybeTensor& given_weight, const MaybeTensor& given_bias, int64_t dimensions, double eps,
          std::initializer_list<const Tensor*> others)
      : place(given),
        geometry(given, dimensions, others),
        input(given, geometry, make_contiguous),
        weight(readable(given_weight, geometry, given.scalar_type())),
        bias(readable(given_bias, geometry, given.scalar_type())) {
    norm.dtype = dtype_of(given);
    STD_TORCH_CHECK(norm.dtype != Dtype::float64, "fastdl: the CUDA kernels take float32, float16 and bfloat16");
    norm.rows = geometry.rows;
    norm.inner = geometry.inner;
    norm.width = geometry.width;
    norm.input = row_tensor(input);
    norm.weight = parameter_of(weight);
    norm.bias = parameter_of(bias);
    norm.eps = eps;
  }

  Tensor make_activation() const { return make_contiguous(geometry.sizes, geometry.strides, input.tensor); }
};

using ThreeTensors = std::tuple<Tensor, Tensor, Tensor>;

ThreeTensors forward(const Tensor& input, const MaybeTensor& residual, const MaybeTensor& weight, const MaybeTensor& bias,
                     int64_t dimensions, double eps, bool centered) {
  RowCall call(input, weight, bias, dimensions, eps, {pointer_to(residual)});
  Tensor output = call.make_activation(), sum;
  std::optional<RowOperand> added;
  if (residual) {
    sum = call.make_activation();
    call.norm.residual = row_tensor(added.emplace(*residual, call.geometry, make_contiguous));
  }
  const int64_t rows = call.geometry.rows;
  const Tensor statistics = empty_row_statistics(centered ? Shape{2, rows} : Shape{rows}, input);
  const RowNormResults results{address(output), residual ? address(sum) : nullptr, static_cast<float*>(address(statistics))};
  check((centered ? layer_norm_forward : rms_norm_forward)(call.norm, results, call.place.stream),
        centered ? "layer_norm's forward" : "rms_norm's forward");
  return {output, sum, statistics};
}

// A parameter's gradient, in the parameter's dtype; undefined where it is not wanted.
ParameterGradient make_gradient(const RowGeometry& geometry, const MaybeTensor& parameter, bool needed, Tensor& gradient) {
  if (!parameter || !needed) return {nullptr, Dtype::float32};
  gradient = empty_strided(geometry.parameter_sizes, geometry.parameter_strides, parameter->scalar_type(), *parameter);
  return {address(gradient), dtype_of(*parameter)};
}

// By input, weight and bias.
ThreeTensors backward(const Tensor& grad_output, const MaybeTensor& grad_sum, const Tensor& input, const MaybeTensor& weight,
                      const MaybeTensor& bias, const Tensor& statistics, int64_t dimensions, double eps, bool needs_input,
                      bool needs_weight, bool needs_bias, bool centered) {
  const RowCall call(input, weight, bias, dimensions, eps, {&grad_output, pointer_to(grad_sum)});
  const RowOperand output(grad_output, call.geometry, make_contiguous);
  std::optional<RowOperand> sum;
  if (grad_sum && needs_input) sum.emplace(*grad_sum, call.geometry, make_contiguous);
  Tensor by_input, by_weight, by_bias;
  if (needs_input) by_input = call.make_activation();
  const RowNormGradients gradients{
      row_tensor(output), sum ? row_tensor(*sum) : RowTensor{}, needs_input ? address(by_input) : nullptr,
      make_gradient(call.geometry, weight, needs_weight, by_weight), make_gradient(call.geometry, bias, needs_bias, by_bias)};
  const Target target = current_target();
  const size_t bytes = (centered ? layer_norm_backward_workspace : rms_norm_backward_workspace)(call.norm, gradients, target);
  // Freed when the call returns: torch gives it only to work that the same stream does later.
  const Tensor workspace = empty_strided({int64_t(bytes)}, {1}, ScalarType::Byte, input);
  check((centered ? layer_norm_backward : rms_norm_backward)(call.norm, static_cast<const float*>(statistics.const_data_ptr()),
                                                             gradients, address(workspace), target, call.place.stream),
        centered ? "layer_norm's backward" : "rms_norm's backward");
  return {by_input, by_weight, by_bias};
}

ThreeTensors layer_norm_forward_op(const Tensor& input, const MaybeTensor& residual, const MaybeTensor& weight,
                                   const MaybeTensor& bias, int64_t dimensions, double eps) {
  return forward(input, residual, weight, bias, dimensions, eps, true);
}

std::tuple<Tensor, Tensor, Tensor, Tensor> layer_norm_backward_op(const Tensor& grad_output, const MaybeTensor& grad_sum,
                                                                  const Tensor& input, const MaybeTensor&,
                                                                  const MaybeTensor& weight, const MaybeTensor& bias,
                                                                  const Tensor& statistics, int64_t dimensions, double eps,
                                                                  const std::vector<bool>& needs) {
  const auto [by_input, by_weight, by_bias] =
      backward(grad_output, grad_sum, input, weight, bias, statistics, dimensions, eps, needs[0], needs[2], needs[3], true);
  return {by_input, Tensor(), by_weight, by_bias};
}

ThreeTensors rms_norm_forward_op(const Tensor& input, const MaybeTensor& residual, const MaybeTensor& weight, int64_t dimensions,
                                 double eps) {
  return forward(input, residual, weight, std::nullopt, dimensions, eps, false);
}

ThreeTensors rms_norm_backward_op(const Tensor& grad_output, const MaybeTensor& grad_sum, const Tensor& input, const MaybeTensor&,
                                  const MaybeTensor& weight, const Tensor& statistics, int64_t dimensions, double eps,
                                  const std::vector<bool>& needs) {
  const auto [by_input, by_weight, by_bias] =
      backward(grad_output, grad_sum, input, weight, std::nullopt, statistics, dimensions, eps, needs[0], needs[2], false, false);
  return {by_input, Tensor(), by_weight};
}

}  // namespace
}  // namespace row_norm_ops
}  // namespace fastdl::cuda

STABLE_TORCH_LIBRARY_FRAGMENT(fastdl_cuda, library) {
  library.def(fastdl::layer_norm_forward_schema);
  library.def(fastdl::layer_norm_backward_schema);
  library.def(fastdl::rms_norm_forward_schema);
  library.def(fastdl::rms_norm_backward_schema);
}

STABLE_TORCH_LIBRARY_IMPL(fastdl_cuda, CUDA, library) {
  library.impl("layer_norm_forward", TORCH_BOX(&fastdl::cuda::row_norm_ops::layer_norm_forward_op));
  library.impl("layer_norm_backward", TORCH_BOX(&fastdl::cuda::row_norm_ops::layer_norm_backward_op));
  library.impl("rms_norm_forward", TORCH_BOX(&fastdl::cuda::row_norm_ops::rms_norm_forward_op));
  library.impl("rms_norm_backward", TORCH_BOX(&fastdl::cuda::row_norm_ops::rms_norm_backward_op));
}
