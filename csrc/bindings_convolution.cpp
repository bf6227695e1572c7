// Convolutions on the CPU as ops of torch, in the LibTorch stable ABI: over float32 in channels last.
#include <algorithm>
#include <optional>
#include <string>
#include <tuple>

#include "cpu/convolution.h"
#include "cpu_tensors.h"

namespace fastdl {
namespace {

// A tensor as the kernels read it: itself, or a copy that is dense with its channels innermost.
struct ChannelsLast {
  Tensor tensor;
  Shape sizes, strides;
  int64_t count = 1;

  ChannelsLast(Shape shape, const Tensor& like) : ChannelsLast(std::move(shape)) { tensor = make(sizes, strides, like, count); }
  explicit ChannelsLast(const Tensor& given) : ChannelsLast(Shape(given.sizes().begin(), given.sizes().end())) {
    if (is_dense(given)) {
      tensor = given;
      return;
    }
    tensor = make(sizes, strides, given, count);
    torch::stable::copy_(tensor, given);
  }

  const float* read() const { return static_cast<const float*>(tensor.const_data_ptr()); }
  float* write() const { return static_cast<float*>(tensor.mutable_data_ptr()); }

 private:
  explicit ChannelsLast(Shape&& shape) : sizes(std::move(shape)), strides(sizes.size()) {
    strides[1] = 1;
    count = sizes[1];
    for (size_t i = sizes.size() - 1; i >= 1; --i) {
      const size_t d = i == 1 ? 0 : i;
      strides[d] = count;
      count *= sizes[d];
    }
  }
  bool is_dense(const Tensor& given) const {
    for (size_t i = 0; i < sizes.size(); ++i)
      if (sizes[i] > 1 && given.strides()[i] != strides[i]) return false;
    return true;
  }
};

Convolution geometry(const Shape& input, const Tensor& weight, const Shape& stride, const Shape& padding, const Shape& dilation) {
  Convolution c{};
  c.samples = input[0];
  c.in_channels = input[1];
  c.out_channels = weight.size(0);
  c.weight_strides[0] = weight.stride(0);
  c.weight_strides[1] = weight.stride(1);
  const int spatial = int(input.size()) - 2;
  for (int d = 0; d < 3; ++d) {
    const int i = d - (3 - spatial);
    c.in[d] = c.out[d] = c.kernel[d] = c.stride[d] = c.dilation[d] = 1;
    if (i < 0) continue;
    c.in[d] = input[i + 2];
    c.kernel[d] = weight.size(i + 2);
    c.weight_strides[d + 2] = weight.stride(i + 2);
    c.stride[d] = stride[i];
    c.padding[d] = padding[i];
    c.dilation[d] = dilation[i];
    c.out[d] = (c.in[d] + 2 * c.padding[d] - c.dilation[d] * (c.kernel[d] - 1) - 1) / c.stride[d] + 1;
  }
  return c;
}

Shape output_sizes(const Convolution& c, size_t dimensions) {
  Shape sizes{c.samples, c.out_channels};
  for (size_t d = 5 - dimensions; d < 3; ++d) sizes.push_back(c.out[d]);
  return sizes;
}

Shape to_shape(const Tensor& tensor) { return Shape(tensor.sizes().begin(), tensor.sizes().end()); }

// The number of channels in a vector; 0 where these convolutions were not measured as fast as oneDNN's.
int64_t convolution_lanes_op() { return convolution_is_fast() ? convolution_lanes() : 0; }

// A bias as the kernels read it: itself, or a copy without gaps.
struct DenseBias {
  MaybeTensor tensor;

  DenseBias(const MaybeTensor& given, const Tensor& like) : tensor(given) {
    if (!given || given->stride(0) == 1) return;
    tensor = empty_strided({given->size(0)}, {1}, ScalarType::Float, like);
    torch::stable::copy_(*tensor, *given);
  }
  const float* read() const { return tensor ? static_cast<const float*>(tensor->const_data_ptr()) : nullptr; }
};

std::tuple<Tensor, Tensor> convolution_forward_op(const Tensor& input, const Tensor& weight, const MaybeTensor& bias,
                                                  const Shape& stride, const Shape& padding, const Shape& dilation, bool collect) {
  const ChannelsLast x(input);
  const Convolution c = geometry(x.sizes, weight, stride, padding, dilation);
  const ChannelsLast output(output_sizes(c, x.sizes.size()), input);
  Tensor moments = empty_statistics({collect ? 2 * c.out_channels : 0}, input);
  const DenseBias dense(bias, input);
  convolution_forward(c, x.read(), static_cast<const float*>(weight.const_data_ptr()), dense.read(), output.write(),
                      collect ? static_cast<double*>(moments.mutable_data_ptr()) : nullptr);
  return {output.tensor, moments};
}

// act(convolution + bias + residual), for inference.
Tensor convolution_act_op(const Tensor& input, const Tensor& weight, const MaybeTensor& bias, const MaybeTensor& residual,
                          const Shape& stride, const Shape& padding, const Shape& dilation, const std::string& activation,
                          double parameter) {
  const ChannelsLast x(input);
  const Convolution c = geometry(x.sizes, weight, stride, padding, dilation);
  const Shape sizes = output_sizes(c, x.sizes.size());
  const ChannelsLast output(sizes, input);
  STD_TORCH_CHECK(!residual || to_shape(*residual) == sizes, "fastdl: the residual must be of the output's shape");
  const std::optional<ChannelsLast> added = residual ? std::optional<ChannelsLast>(*residual) : std::nullopt;
  const DenseBias dense(bias, input);
  convolution_act_forward(c, x.read(), static_cast<const float*>(weight.const_data_ptr()), dense.read(),
                          added ? added->read() : nullptr, activation_named(activation), parameter, output.write());
  return output.tensor;
}

// Gradients of the input and of the weight, the latter in the weight's order of memory; None for one that is not needed.
std::tuple<Tensor, Tensor> convolution_backward_op(const Tensor& grad_output, const Tensor& input, const Tensor& weight,
                                                   const Shape& stride, const Shape& padding, const Shape& dilation,
                                                   bool needs_input, bool needs_weight) {
  const ChannelsLast gradient(grad_output);
  const Shape sizes = to_shape(input);
  Convolution c = geometry(sizes, weight, stride, padding, dilation);
  Tensor grad_input, grad_weight;
  if (needs_input) {
    const ChannelsLast result(sizes, input);
    convolution_data_gradient(c, gradient.read(), static_cast<const float*>(weight.const_data_ptr()), result.write());
    grad_input = result.tensor;
  }
  if (needs_weight) {
    const ChannelsLast x(input);
    const Shape shape = to_shape(weight);
    if (weight.is_contiguous()) {
      grad_weight = torch::stable::empty_like(weight);
    } else {
      grad_weight = ChannelsLast(shape, weight).tensor;
    }
    c = geometry(sizes, grad_weight, stride, padding, dilation);
    convolution_weight_gradient(c, gradient.read(), x.read(), static_cast<float*>(grad_weight.mutable_data_ptr()));
  }
  return {grad_input, grad_weight};
}

}  // namespace
}  // namespace fastdl

STABLE_TORCH_LIBRARY_FRAGMENT(fastdl_cpu, library) {
  library.def("convolution_lanes() -> int");
  library.def(
      "convolution_forward(Tensor input, Tensor weight, Tensor? bias, int[] stride, int[] padding, int[] dilation, bool collect) "
      "-> (Tensor, Tensor)");
  library.def(
      "convolution_act(Tensor input, Tensor weight, Tensor? bias, Tensor? residual, int[] stride, int[] padding, int[] dilation, "
      "str activation, float activation_param) -> Tensor");
  library.def(
      "convolution_backward(Tensor grad_output, Tensor input, Tensor weight, int[] stride, int[] padding, int[] dilation, "
      "bool needs_input, bool needs_weight) -> (Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(fastdl_cpu, CPU, library) {
  library.impl("convolution_forward", TORCH_BOX(&fastdl::convolution_forward_op));
  library.impl("convolution_act", TORCH_BOX(&fastdl::convolution_act_op));
  library.impl("convolution_backward", TORCH_BOX(&fastdl::convolution_backward_op));
}

// It has no tensor to be chosen by.
STABLE_TORCH_LIBRARY_IMPL(fastdl_cpu, CompositeExplicitAutograd, library) {
  library.impl("convolution_lanes", TORCH_BOX(&fastdl::convolution_lanes_op));
}
