// The CUDA kernels as ops of torch, in the LibTorch stable ABI: registers them in the namespace fastdl_cuda with the schemas of the
// CPU's, brings tensors to a layout that the kernels read in place, allocates results and workspace on the input's device, and
// queues the work on its current stream. The kernels see raw pointers; nothing here waits for them.
#include <tuple>

#include "batch_norm.h"
#include "cuda_tensors.h"
#include "group_norm.h"

namespace fastdl::cuda {
namespace {

// A tensor that the kernels can read: itself, or a dense copy in the call's layout.
struct Operand {
  Tensor tensor;
  Strides strides;

  Operand(const Tensor& given, const Geometry& geometry) : tensor(given) {
    if (auto fit = geometry.in_place(given)) {
      strides = *fit;
      return;
    }
    tensor = empty_strided(geometry.sizes, geometry.dense, given.scalar_type(), given);
    torch::stable::copy_(tensor, given);
    strides = *geometry.in_place(tensor);
  }
};

Parameter parameter_of(const MaybeTensor& tensor) {
  if (!tensor) return {nullptr, Dtype::float32, 0};
  return {tensor->const_data_ptr(), dtype_of(*tensor), tensor->stride(0)};
}

RunningStatistic running_statistic_of(const MaybeTensor& tensor) {
  if (!tensor) return {nullptr, Dtype::float32, 0};
  return {tensor->mutable_data_ptr(), dtype_of(*tensor), tensor->stride(0)};
}

// All that forward and backward of every norm share.
struct Call {
  CurrentDevice place;
  Target target;
  Geometry geometry;
  Operand input;
  std::optional<Operand> residual;
  Norm norm;

  Call(const Tensor& given, const MaybeTensor& weight, const MaybeTensor& bias, const MaybeTensor& residual_tensor, double eps,
       const std::string& activation, double parameter, bool activation_first)
      : place(given), target(current_target()), geometry(given), input(given, geometry) {
    if (residual_tensor) residual.emplace(*residual_tensor, geometry);
    const bool rows = geometry.rows();
    norm.dtype = dtype_of(given);
    STD_TORCH_CHECK(norm.dtype != Dtype::float64, "fastdl: the CUDA kernels take float32, float16 and bfloat16");
    norm.samples = geometry.samples;
    norm.channels = geometry.channels;
    norm.positions = geometry.positions;
    norm.channels_last = rows;
    norm.input = input.tensor.const_data_ptr();
    norm.input_strides = input.strides;
    norm.residual = residual ? residual->tensor.const_data_ptr() : nullptr;
    norm.residual_strides = residual ? residual->strides : Strides{0, 0, 0};
    const int64_t sample = geometry.channels * geometry.positions;
    norm.output_strides = rows ? Strides{sample, 1, geometry.channels} : Strides{sample, geometry.positions, 1};
    norm.weight = parameter_of(weight);
    norm.bias = parameter_of(bias);
    norm.eps = eps;
    norm.parameter = parameter;
    norm.activation = activation_named(activation);
    norm.activation_first = activation_first;
  }

  Tensor make_output() const { return empty_strided(geometry.sizes, geometry.dense, input.tensor.scalar_type(), input.tensor); }

  // Freed when the call returns: torch gives it only to work that the same stream does later.
  Tensor make_workspace(size_t bytes) const { return empty_strided({int64_t(bytes)}, {1}, ScalarType::Byte, input.tensor); }
};

using Gradients = std::tuple<Tensor, Tensor, Tensor, Tensor>;

// The four gradients that were asked for; an undefined tensor, None in Python, for the rest. With no values those of the parameters
// are sums of nothing.
template <class Backward>
Gradients gradients_of(const Call& call, const Tensor& grad_output, const MaybeTensor& weight, const MaybeTensor& bias,
                       const std::vector<bool>& needs, Backward&& backward) {
  Tensor input, residual, weight_gradient, bias_gradient;
  NormGradients gradients{};
  auto parameter_gradient = [&](const MaybeTensor& parameter, bool needed, Tensor& made) -> ParameterGradient {
    if (!parameter || !needed) return {nullptr, Dtype::float32};
    made = empty_strided({call.geometry.channels}, {1}, parameter->scalar_type(), *parameter);
    if (!call.geometry.count) torch::stable::zero_(made);
    return {address(made), dtype_of(*parameter)};
  };
  gradients.weight = parameter_gradient(weight, needs[1], weight_gradient);
  gradients.bias = parameter_gradient(bias, needs[2], bias_gradient);
  if (needs[0]) {
    input = call.make_output();
    gradients.input = address(input);
  }
  if (needs[3] && call.residual) {
    residual = call.make_output();
    gradients.residual = address(residual);
  }
  if (call.geometry.count) {
    const Operand given(grad_output, call.geometry);
    gradients.output = given.tensor.const_data_ptr();
    gradients.output_strides = given.strides;
    backward(gradients);
  }
  return {input, weight_gradient, bias_gradient, residual};
}

// -- group norm ------------------------------------------------------------------------------------------------------------------

std::tuple<Tensor, Tensor> group_norm_forward_op(const Tensor& input, const MaybeTensor& weight, const MaybeTensor& bias,
                                                 const MaybeTensor& residual, int64_t num_groups, double eps,
                                                 const std::string& activation, double parameter, bool activation_first) {
  const Call call(input, weight, bias, residual, eps, activation, parameter, activation_first);
  Tensor output = call.make_output();
  Tensor statistics = empty_statistics({2, call.geometry.samples, num_groups}, input);
  if (!call.geometry.count) {
    torch::stable::zero_(statistics);
    return {output, statistics};
  }
  const Tensor workspace = call.make_workspace(group_norm_forward_workspace(call.norm, num_groups, call.target));
  check(group_norm_forward(call.norm, num_groups, output.mutable_data_ptr(), static_cast<double*>(statistics.mutable_data_ptr()),
                           address(workspace), call.target, call.place.stream),
        "group_norm's forward");
  return {output, statistics};
}

Gradients group_norm_backward_op(const Tensor& grad_output, const Tensor& input, const MaybeTensor& weight, const MaybeTensor& bias,
                                 const MaybeTensor& residual, const Tensor& statistics, int64_t num_groups, double eps,
                                 const std::string& activation, double parameter, bool activation_first,
                                 const std::vector<bool>& needs) {
  const Call call(input, weight, bias, residual, eps, activation, parameter, activation_first);
  return gradients_of(call, grad_output, weight, bias, needs, [&](const NormGradients& gradients) {
    const Tensor workspace = call.make_workspace(group_norm_backward_workspace(call.norm, num_groups, gradients, call.target));
    check(group_norm_backward(call.norm, num_groups, static_cast<const double*>(statistics.const_data_ptr()), gradients,
                              address(workspace), call.target, call.place.stream),
          "group_norm's backward");
  });
}

// -- batch norm ------------------------------------------------------------------------------------------------------------------

std::tuple<Tensor, Tensor> batch_norm_forward_op(const Tensor& input, const MaybeTensor& weight, const MaybeTensor& bias,
                                                 const MaybeTensor& residual, const MaybeTensor& running_mean,
                                                 const MaybeTensor& running_var, double eps, const std::string& activation,
                                                 double parameter, bool activation_first) {
  const Call call(input, weight, bias, residual, eps, activation, parameter, activation_first);
  Tensor output = call.make_output();
  Tensor statistics = empty_statistics({2, call.geometry.channels}, input);
  const bool given = running_mean && running_var;
  if (!call.geometry.count) {
    torch::stable::zero_(statistics);
    if (given) {
      Tensor mean = torch::stable::select(statistics, 0, 0), variance = torch::stable::select(statistics, 0, 1);
      torch::stable::copy_(mean, *running_mean);
      torch::stable::copy_(variance, *running_var);
    }
    return {output, statistics};
  }
  const Tensor workspace = call.make_workspace(batch_norm_forward_workspace(call.norm, given, call.target));
  const Parameter mean = given ? parameter_of(running_mean) : Parameter{},
                  variance = given ? parameter_of(running_var) : Parameter{};
  check(batch_norm_forward(call.norm, mean, variance, output.mutable_data_ptr(),
                           static_cast<double*>(statistics.mutable_data_ptr()), address(workspace), call.target, call.place.stream),
        "batch_norm's forward");
  return {output, statistics};
}

Gradients batch_norm_backward_op(const Tensor& grad_output, const Tensor& input, const MaybeTensor& weight, const MaybeTensor& bias,
                                 const MaybeTensor& residual, const MaybeTensor& running_mean, const MaybeTensor& running_var,
                                 const Tensor& statistics, double eps, const std::string& activation, double parameter,
                                 bool activation_first, const std::vector<bool>& needs) {
  const Call call(input, weight, bias, residual, eps, activation, parameter, activation_first);
  const bool given = running_mean && running_var;
  return gradients_of(call, grad_output, weight, bias, needs, [&](const NormGradients& gradients) {
    const Tensor workspace = call.make_workspace(batch_norm_backward_workspace(call.norm, given, gradients, call.target));
    check(batch_norm_backward(call.norm, given, static_cast<const double*>(statistics.const_data_ptr()), gradients,
                              address(workspace), call.target, call.place.stream),
          "batch_norm's backward");
  });
}

void update_running_statistics_op(const MaybeTensor& running_mean, const MaybeTensor& running_var, const Tensor& statistics,
                                  int64_t count, double momentum) {
  const CurrentDevice place(statistics);
  check(update_running_statistics(running_statistic_of(running_mean), running_statistic_of(running_var),
                                  static_cast<const double*>(statistics.const_data_ptr()), statistics.size(1), count, momentum,
                                  place.stream),
        "the update of the running statistics");
}

}  // namespace
}  // namespace fastdl::cuda

STABLE_TORCH_LIBRARY(fastdl_cuda, library) {
  library.def(
      "group_norm_forward(Tensor input, Tensor? weight, Tensor? bias, Tensor? residual, int num_groups, float eps, str activation, "
      "float activation_param, bool activation_first) -> (Tensor, Tensor)");
  library.def(
      "group_norm_backward(Tensor grad_output, Tensor input, Tensor? weight, Tensor? bias, Tensor? residual, Tensor statistics, "
      "int num_groups, float eps, str activation, float activation_param, bool activation_first, bool[] needs) -> (Tensor, Tensor, "
      "Tensor, Tensor)");
  library.def(
      "batch_norm_forward(Tensor input, Tensor? weight, Tensor? bias, Tensor? residual, Tensor? running_mean, Tensor? running_var, "
      "float eps, str activation, float activation_param, bool activation_first) -> (Tensor, Tensor)");
  library.def(
      "batch_norm_backward(Tensor grad_output, Tensor input, Tensor? weight, Tensor? bias, Tensor? residual, Tensor? running_mean, "
      "Tensor? running_var, Tensor statistics, float eps, str activation, float activation_param, bool activation_first, bool[] "
      "needs) -> (Tensor, Tensor, Tensor, Tensor)");
  library.def(
      "update_running_statistics(Tensor(a!)? running_mean, Tensor(b!)? running_var, Tensor statistics, int count, float momentum) "
      "-> ()");
}

STABLE_TORCH_LIBRARY_IMPL(fastdl_cuda, CUDA, library) {
  library.impl("group_norm_forward", TORCH_BOX(&fastdl::cuda::group_norm_forward_op));
  library.impl("group_norm_backward", TORCH_BOX(&fastdl::cuda::group_norm_backward_op));
  library.impl("batch_norm_forward", TORCH_BOX(&fastdl::cuda::batch_norm_forward_op));
  library.impl("batch_norm_backward", TORCH_BOX(&fastdl::cuda::batch_norm_backward_op));
  library.impl("update_running_statistics", TORCH_BOX(&fastdl::cuda::update_running_statistics_op));
}
