// The CPU kernels as ops of torch, in the LibTorch stable ABI: registers them in the namespace fastdl_cpu, brings
// tensors to a layout that the kernels read in place, and allocates their results. The kernels see raw pointers.
#include <tuple>

#include "cpu/batch_norm.h"
#include "cpu/group_norm.h"
#include "cpu_tensors.h"

namespace fastdl {

void parallel_for(int64_t begin, int64_t end, int64_t grain, void (*body)(void*, int64_t, int64_t), void* context) {
  if (end - begin <= grain) {
    if (end > begin) body(context, begin, end);
    return;
  }
  torch::stable::parallel_for(begin, end, grain, [&](int64_t first, int64_t last) { body(context, first, last); });
}

int64_t thread_count() { return torch::stable::get_num_threads(); }

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
    tensor = make(geometry.sizes, geometry.dense, given, geometry.count);
    torch::stable::copy_(tensor, given);
    strides = *geometry.in_place(tensor);
  }
};

// A parameter by channel, in double.
std::vector<double> by_channel(const MaybeTensor& parameter) {
  std::vector<double> values;
  if (!parameter) return values;
  const int64_t n = parameter->size(0), stride = parameter->stride(0);
  values.resize(n);
  with_dtype(dtype_of(*parameter), [&](auto t) {
    using T = decltype(t);
    const T* p = static_cast<const T*>(parameter->const_data_ptr());
    for (int64_t i = 0; i < n; ++i) {
      if constexpr (std::is_floating_point_v<T>) values[i] = double(p[i * stride]);
      else values[i] = double(widen(p[i * stride]));
    }
  });
  return values;
}

Tensor like_parameter(const Tensor& parameter, const std::vector<double>& values) {
  Tensor out = empty_strided({int64_t(values.size())}, {1}, parameter.scalar_type(), parameter);
  with_dtype(dtype_of(parameter), [&](auto t) {
    using T = decltype(t);
    T* p = static_cast<T*>(out.mutable_data_ptr());
    for (size_t i = 0; i < values.size(); ++i) {
      if constexpr (std::is_floating_point_v<T>) p[i] = T(values[i]);
      else narrow(float(values[i]), p[i]);
    }
  });
  return out;
}

// All that forward and backward of every norm share.
struct Call {
  Geometry geometry;
  Operand input;
  std::optional<Operand> residual;
  std::vector<double> weight, bias;
  Norm norm;

  Call(const Tensor& given, const MaybeTensor& weight_tensor, const MaybeTensor& bias_tensor, const MaybeTensor& residual_tensor,
       double eps, const std::string& activation, double parameter, bool activation_first)
      : geometry(given), input(given, geometry), weight(by_channel(weight_tensor)), bias(by_channel(bias_tensor)) {
    if (residual_tensor) residual.emplace(*residual_tensor, geometry);
    const bool rows = geometry.rows();
    norm.dtype = dtype_of(given);
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
    norm.weight = weight.empty() ? nullptr : weight.data();
    norm.bias = bias.empty() ? nullptr : bias.data();
    norm.eps = eps;
    norm.parameter = parameter;
    norm.activation = activation_named(activation);
    norm.activation_first = activation_first;
  }

  Tensor make_output() const {
    const Tensor& given = input.tensor;
    return make(geometry.sizes, geometry.dense, given, geometry.count);
  }
};

using Gradients = std::tuple<Tensor, Tensor, Tensor, Tensor>;

// The four gradients that were asked for; an undefined tensor, None in Python, for the rest.
template <class Backward>
Gradients gradients_of(const Call& call, const Tensor& grad_output, const MaybeTensor& weight, const MaybeTensor& bias,
                       const std::vector<bool>& needs, Backward&& backward) {
  const bool has_residual = call.residual.has_value();
  Tensor input, weight_gradient, bias_gradient, residual;
  std::vector<double> by_weight(call.geometry.channels), by_bias(call.geometry.channels);
  if (needs[0]) input = call.make_output();
  if (needs[3] && has_residual) residual = call.make_output();
  if (call.geometry.count) {
    const Operand gradient(grad_output, call.geometry);
    NormGradients gradients{gradient.tensor.const_data_ptr(),
                            gradient.strides,
                            needs[0] ? input.mutable_data_ptr() : nullptr,
                            needs[3] && has_residual ? residual.mutable_data_ptr() : nullptr,
                            by_weight.data(),
                            by_bias.data()};
    backward(gradients);
  }
  if (needs[1] && weight) weight_gradient = like_parameter(*weight, by_weight);
  if (needs[2] && bias) bias_gradient = like_parameter(*bias, by_bias);
  return {input, weight_gradient, bias_gradient, residual};
}

// -- group norm ------------------------------------------------------------------------------------------------------------------

std::tuple<Tensor, Tensor> group_norm_forward_op(const Tensor& input, const MaybeTensor& weight, const MaybeTensor& bias,
                                                 const MaybeTensor& residual, int64_t num_groups, double eps,
                                                 const std::string& activation, double parameter, bool activation_first) {
  const Call call(input, weight, bias, residual, eps, activation, parameter, activation_first);
  Tensor output = call.make_output();
  Tensor statistics = empty_statistics({2, call.geometry.samples, num_groups}, input);
  double* values = static_cast<double*>(statistics.mutable_data_ptr());
  if (call.geometry.count) group_norm_forward(call.norm, num_groups, output.mutable_data_ptr(), values);
  else std::fill(values, values + statistics.numel(), 0.0);
  return {output, statistics};
}

Gradients group_norm_backward_op(const Tensor& grad_output, const Tensor& input, const MaybeTensor& weight, const MaybeTensor& bias,
                                 const MaybeTensor& residual, const Tensor& statistics, int64_t num_groups, double eps,
                                 const std::string& activation, double parameter, bool activation_first,
                                 const std::vector<bool>& needs) {
  const Call call(input, weight, bias, residual, eps, activation, parameter, activation_first);
  return gradients_of(call, grad_output, weight, bias, needs, [&](const NormGradients& gradients) {
    group_norm_backward(call.norm, num_groups, static_cast<const double*>(statistics.const_data_ptr()), gradients);
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
  double* values = static_cast<double*>(statistics.mutable_data_ptr());
  const bool given = running_mean && running_var;
  std::fill(values, values + statistics.numel(), 0.0);
  if (given) {
    const std::vector<double> mean = by_channel(running_mean), variance = by_channel(running_var);
    std::copy(mean.begin(), mean.end(), values);
    std::copy(variance.begin(), variance.end(), values + mean.size());
  }
  if (call.geometry.count) batch_norm_forward(call.norm, given, output.mutable_data_ptr(), values);
  return {output, statistics};
}

Gradients batch_norm_backward_op(const Tensor& grad_output, const Tensor& input, const MaybeTensor& weight, const MaybeTensor& bias,
                                 const MaybeTensor& residual, const MaybeTensor& running_mean, const MaybeTensor& running_var,
                                 const Tensor& statistics, double eps, const std::string& activation, double parameter,
                                 bool activation_first, const std::vector<bool>& needs) {
  const Call call(input, weight, bias, residual, eps, activation, parameter, activation_first);
  return gradients_of(call, grad_output, weight, bias, needs, [&](const NormGradients& gradients) {
    batch_norm_backward(call.norm, running_mean && running_var, static_cast<const double*>(statistics.const_data_ptr()), gradients);
  });
}

// running = (1 - momentum) running + momentum batch, the variance made unbiased, in one call instead of eight of torch's.
void update_running_statistics_op(const MaybeTensor& running_mean, const MaybeTensor& running_var, const Tensor& statistics,
                                  int64_t count, double momentum) {
  const int64_t channels = statistics.size(1);
  const double* batch = static_cast<const double*>(statistics.const_data_ptr());
  const double unbiased = count > 1 ? double(count) / double(count - 1) : 1;
  auto update = [&](const Tensor& running, const double* values, double factor) {
    const int64_t stride = running.stride(0);
    with_dtype(dtype_of(running), [&](auto t) {
      using T = decltype(t);
      using A = Arithmetic<T>;
      T* p = static_cast<T*>(running.mutable_data_ptr());
      for (int64_t c = 0; c < channels; ++c) {
        if constexpr (std::is_floating_point_v<T>)
          p[c * stride] = A(1 - momentum) * p[c * stride] + A(momentum) * A(values[c] * factor);
        else narrow(A(1 - momentum) * widen(p[c * stride]) + A(momentum) * A(values[c] * factor), p[c * stride]);
      }
    });
  };
  if (running_mean) update(*running_mean, batch, 1);
  if (running_var) update(*running_var, batch + channels, unbiased);
}

}  // namespace
}  // namespace fastdl

STABLE_TORCH_LIBRARY(fastdl_cpu, library) {
  library.def(
      "group_norm_forward(Tensor input, Tensor? weight, Tensor? bias, Tensor? residual, int num_groups, float eps, str activation, "
      "float activation_param, bool activation_first) -> (Tensor, Tensor)");
  library.def(
      "group_norm_backward(Tensor grad_output, Tensor input, Tensor? weight, Tensor? bias, Tensor? residual, Tensor statistics, "
      "int num_groups, float eps, str activation, float activation_param, bool activation_first, bool[] needs) -> (Tensor, Tensor, "
      "Tensor, "
      "Tensor)");
  library.def(
      "batch_norm_forward(Tensor input, Tensor? weight, Tensor? bias, Tensor? residual, Tensor? running_mean, Tensor? running_var, "
      "float eps, str activation, float activation_param, bool activation_first) -> (Tensor, Tensor)");
  library.def(
      "batch_norm_backward(Tensor grad_output, Tensor input, Tensor? weight, Tensor? bias, Tensor? residual, Tensor? running_mean, "
      "Tensor? running_var, Tensor statistics, float eps, str activation, float activation_param, bool activation_first, bool[] "
      "needs) "
      "-> (Tensor, Tensor, Tensor, Tensor)");
  library.def(
      "update_running_statistics(Tensor(a!)? running_mean, Tensor(b!)? running_var, Tensor statistics, int count, float momentum) "
      "-> ()");
}

STABLE_TORCH_LIBRARY_IMPL(fastdl_cpu, CPU, library) {
  library.impl("group_norm_forward", TORCH_BOX(&fastdl::group_norm_forward_op));
  library.impl("group_norm_backward", TORCH_BOX(&fastdl::group_norm_backward_op));
  library.impl("batch_norm_forward", TORCH_BOX(&fastdl::batch_norm_forward_op));
  library.impl("batch_norm_backward", TORCH_BOX(&fastdl::batch_norm_backward_op));
  library.impl("update_running_statistics", TORCH_BOX(&fastdl::update_running_statistics_op));
}
