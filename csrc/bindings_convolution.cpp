// Convolutions on the CPU as ops of torch, in the LibTorch stable ABI: over float32 in channels last.
#include <algorithm>
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

// What torch's own convolution would refuse is not served, so that it is torch's that refuses it.
bool convolution_is_served_op(const Tensor& input, const Tensor& weight, const Shape& stride, const Shape& padding,
                              const Shape& dilation, int64_t groups) {
  if (!convolution_is_fast() || groups != 1 || input.dim() < 3 || input.dim() > 5 || weight.dim() != input.dim()) return false;
  for (const Tensor& tensor : {input, weight})
    if (tensor.scalar_type() != ScalarType::Float || tensor.numel() == 0) return false;
  const size_t spatial = size_t(input.dim()) - 2;
  if (stride.size() != spatial || padding.size() != spatial || dilation.size() != spatial) return false;
  for (size_t i = 0; i < spatial; ++i)
    if (stride[i] < 1 || padding[i] < 0 || dilation[i] < 1) return false;
  // Less than two vectors of channels fill half a tile: with 16, oneDNN took 0.83 of the time.
  if (std::min(weight.size(0), weight.size(1)) < 32 || weight.size(1) != input.size(1) || !Geometry(input).channels_last)
    return false;
  const Convolution c = geometry(to_shape(input), weight, stride, padding, dilation);
  return convolution_fills_vectors(c) && std::min({c.out[0], c.out[1], c.out[2]}) > 0;
}

std::tuple<Tensor, Tensor> convolution_forward_op(const Tensor& input, const Tensor& weight, const MaybeTensor& bias,
                                                  const Shape& stride, const Shape& padding, const Shape& dilation, bool collect) {
  const ChannelsLast x(input);
  const Convolution c = geometry(x.sizes, weight, stride, padding, dilation);
  const ChannelsLast output(output_sizes(c, x.sizes.size()), input);
  Tensor moments = empty_statistics({collect ? 2 * c.out_channels : 0}, input), dense_bias;
  if (bias) {
    dense_bias = empty_strided({c.out_channels}, {1}, ScalarType::Float, input);
    torch::stable::copy_(dense_bias, *bias);
  }
  convolution_forward(c, x.read(), static_cast<const float*>(weight.const_data_ptr()),
                      bias ? static_cast<const float*>(dense_bias.const_data_ptr()) : nullptr, output.write(),
                      collect ? static_cast<double*>(moments.mutable_data_ptr()) : nullptr);
  return {output.tensor, moments};
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
  library.def(
      "convolution_is_served(Tensor input, Tensor weight, int[] stride, int[] padding, int[] dilation, int groups) -> bool");
  library.def(
      "convolution_forward(Tensor input, Tensor weight, Tensor? bias, int[] stride, int[] padding, int[] dilation, bool collect) "
      "-> (Tensor, Tensor)");
  library.def(
      "convolution_backward(Tensor grad_output, Tensor input, Tensor weight, int[] stride, int[] padding, int[] dilation, "
      "bool needs_input, bool needs_weight) -> (Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(fastdl_cpu, CPU, library) {
  library.impl("convolution_is_served", TORCH_BOX(&fastdl::convolution_is_served_op));
  library.impl("convolution_forward", TORCH_BOX(&fastdl::convolution_forward_op));
  library.impl("convolution_backward", TORCH_BOX(&fastdl::convolution_backward_op));
}
