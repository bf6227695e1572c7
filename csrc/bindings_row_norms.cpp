// Layer norm and RMS norm on the CPU as ops of torch, in the LibTorch stable ABI: reads activations where they lie if their rows
// are contiguous, brings parameters to the type of the arithmetic, and allocates the results.
#include <algorithm>
#include <tuple>

#include "cpu/layer_norm.h"
#include "cpu/normalize.h"
#include "cpu/rms_norm.h"
#include "cpu_tensors.h"
#include "row_norm_tensors.h"

namespace fastdl {
namespace {

int64_t count_of(const Shape& sizes) {
  int64_t count = 1;
  for (int64_t size : sizes) count *= size;
  return count;
}

Tensor make_contiguous(const Shape& sizes, const Shape& strides, const Tensor& like) {
  return make(sizes, strides, like, count_of(sizes));
}

ScalarType arithmetic_type(const Tensor& input) {
  return input.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

// A weight or bias in the type of the arithmetic: itself, or a copy.
std::optional<Tensor> parameter_of(const MaybeTensor& given, const RowGeometry& geometry, ScalarType wide) {
  if (!given) return std::nullopt;
  if (given->scalar_type() == wide && given->is_contiguous()) return given;
  Tensor copy = empty_strided(geometry.parameter_sizes, geometry.parameter_strides, wide, *given);
  torch::stable::copy_(copy, *given);
  return copy;
}

const void* address_of(const MaybeTensor& tensor) { return tensor ? tensor->const_data_ptr() : nullptr; }

RowInput row_input(const RowOperand& operand) { return {operand.tensor.const_data_ptr(), operand.strides}; }

// Mean and rstd of each row, or rstd alone: one tensor, in which the kernels find two.
struct Statistics {
  char* first;
  int64_t bytes;  // of one value of all rows
  bool centered;

  Statistics(const Tensor& tensor, int64_t rows, bool centered)
      : first(static_cast<char*>(const_cast<void*>(tensor.const_data_ptr()))),
        bytes(rows * int64_t(tensor.element_size())),
        centered(centered) {}
  void* mean() const { return centered ? first : nullptr; }
  void* rstd() const { return centered ? first + bytes : first; }
};

// All that forward and backward of both ops share.
struct Call {
  RowGeometry geometry;
  RowOperand input;
  MaybeTensor weight, bias;
  RowNorm norm;

  Call(const Tensor& given, const MaybeTensor& weight_tensor, const MaybeTensor& bias_tensor, int64_t dimensions, double eps,
       std::initializer_list<const Tensor*> others)
      : geometry(given, dimensions, others),
        input(given, geometry, make_contiguous),
        weight(parameter_of(weight_tensor, geometry, arithmetic_type(given))),
        bias(parameter_of(bias_tensor, geometry, arithmetic_type(given))) {
    norm.dtype = dtype_of(given);
    norm.rows = geometry.rows;
    norm.width = geometry.width;
    norm.inner = geometry.inner;
    norm.input = row_input(input);
    norm.weight = address_of(weight);
    norm.bias = address_of(bias);
    norm.eps = eps;
  }

  Tensor make_activation() const { return make_contiguous(geometry.sizes, geometry.strides, input.tensor); }
};

using Tensors = std::tuple<Tensor, Tensor, Tensor>;

Tensors forward(const Tensor& input, const MaybeTensor& residual, const MaybeTensor& weight, const MaybeTensor& bias,
                int64_t dimensions, double eps, bool centered) {
  Call call(input, weight, bias, dimensions, eps, {pointer_to(residual)});
  const int64_t rows = call.geometry.rows;
  Tensor output = call.make_activation(), sum;
  if (residual) sum = call.make_activation();
  Tensor statistics = empty_row_statistics(centered ? Shape{2, rows} : Shape{rows}, input);
  if (call.geometry.empty()) {
    torch::stable::zero_(statistics);
    return {output, sum, statistics};
  }
  std::optional<RowOperand> added;
  if (residual) call.norm.residual = row_input(added.emplace(*residual, call.geometry, make_contiguous));
  const Statistics of_rows(statistics, rows, centered);
  const RowNormResults results{output.mutable_data_ptr(), residual ? sum.mutable_data_ptr() : nullptr, of_rows.mean(),
                               of_rows.rstd()};
  (centered ? layer_norm_forward : rms_norm_forward)(call.norm, results);
  return {output, sum, statistics};
}

// The gradient of a parameter: computed in the type of the arithmetic, returned in the parameter's own.
class ParameterGradient {
 public:
  ParameterGradient(const Call& call, const MaybeTensor& parameter, bool needed) : geometry_(call.geometry) {
    if (!parameter || !needed) return;
    dtype_ = parameter->scalar_type();
    computed_ = make(arithmetic_type(call.input.tensor), *parameter);
    if (geometry_.empty()) torch::stable::zero_(computed_);
  }
  // Where it is to be written; null where it is not wanted.
  void* address() const { return computed_.defined() ? computed_.mutable_data_ptr() : nullptr; }
  Tensor result() const {
    if (!computed_.defined() || computed_.scalar_type() == dtype_) return computed_;
    Tensor narrow = make(dtype_, computed_);
    torch::stable::copy_(narrow, computed_);
    return narrow;
  }

 private:
  Tensor make(ScalarType dtype, const Tensor& like) const {
    return empty_strided(geometry_.parameter_sizes, geometry_.parameter_strides, dtype, like);
  }

  const RowGeometry& geometry_;
  ScalarType dtype_ = ScalarType::Float;
  Tensor computed_;
};

// By input, weight and bias.
Tensors backward(const Tensor& grad_output, const MaybeTensor& grad_sum, const Tensor& input, const MaybeTensor& weight,
                 const MaybeTensor& bias, const Tensor& statistics, int64_t dimensions, double eps, bool needs_input,
                 bool needs_weight, bool needs_bias, bool centered) {
  const Call call(input, weight, bias, dimensions, eps, {&grad_output, pointer_to(grad_sum)});
  const Statistics of_rows(statistics, call.geometry.rows, centered);
  Tensor by_input;
  if (needs_input) by_input = call.make_activation();
  const ParameterGradient by_weight(call, weight, needs_weight), by_bias(call, bias, needs_bias);
  if (!call.geometry.empty()) {
    const RowOperand output(grad_output, call.geometry, make_contiguous);
    std::optional<RowOperand> added;
    if (grad_sum && needs_input) added.emplace(*grad_sum, call.geometry, make_contiguous);
    const RowNormGradients gradients{row_input(output),
                                     added ? row_input(*added) : RowInput{},
                                     of_rows.mean(),
                                     of_rows.rstd(),
                                     needs_input ? by_input.mutable_data_ptr() : nullptr,
                                     by_weight.address(),
                                     by_bias.address()};
    if (gradients.input || gradients.weight || gradients.bias)
      (centered ? layer_norm_backward : rms_norm_backward)(call.norm, gradients);
  }
  return {by_input, by_weight.result(), by_bias.result()};
}

// -- layer norm ------------------------------------------------------------------------------------------------------------------

Tensors layer_norm_forward_op(const Tensor& input, const MaybeTensor& residual, const MaybeTensor& weight, const MaybeTensor& bias,
                              int64_t dimensions, double eps) {
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

// -- RMS norm --------------------------------------------------------------------------------------------------------------------

Tensors rms_norm_forward_op(const Tensor& input, const MaybeTensor& residual, const MaybeTensor& weight, int64_t dimensions,
                            double eps) {
  return forward(input, residual, weight, std::nullopt, dimensions, eps, false);
}

Tensors rms_norm_backward_op(const Tensor& grad_output, const MaybeTensor& grad_sum, const Tensor& input, const MaybeTensor&,
                             const MaybeTensor& weight, const Tensor& statistics, int64_t dimensions, double eps,
                             const std::vector<bool>& needs) {
  const auto [by_input, by_weight, by_bias] =
      backward(grad_output, grad_sum, input, weight, std::nullopt, statistics, dimensions, eps, needs[0], needs[2], false, false);
  return {by_input, Tensor(), by_weight};
}

}  // namespace
}  // namespace fastdl

STABLE_TORCH_LIBRARY_FRAGMENT(fastdl_cpu, library) {
  library.def(fastdl::layer_norm_forward_schema);
  library.def(fastdl::layer_norm_backward_schema);
  library.def(fastdl::rms_norm_forward_schema);
  library.def(fastdl::rms_norm_backward_schema);
}

STABLE_TORCH_LIBRARY_IMPL(fastdl_cpu, CPU, library) {
  library.impl("layer_norm_forward", TORCH_BOX(&fastdl::layer_norm_forward_op));
  library.impl("layer_norm_backward", TORCH_BOX(&fastdl::layer_norm_backward_op));
  library.impl("rms_norm_forward", TORCH_BOX(&fastdl::rms_norm_forward_op));
  library.impl("rms_norm_backward", TORCH_BOX(&fastdl::rms_norm_backward_op));
}
