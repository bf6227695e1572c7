// The forward of conv(act(norm(x))), and its backward from what that leaves, as one case; and which calls there are kernels for.
#include "norm_act_conv.h"

#include <string>

#include "convolution.h"
#include "device.cuh"
#include "simt/case.h"

using namespace fastdl;
using namespace fastdl::cuda;

namespace {

ConvolutionSizes sizes_of(simt::Case& c) {
  return {c.integer("samples"),         c.integer("channels"),        c.integer("height"),         c.integer("width"),
          c.integer("out_channels"),    c.integer("weight_channels"), c.integer("kernel_height"),  c.integer("kernel_width"),
          c.integer("stride_height"),   c.integer("stride_width"),    c.integer("padding_height"), c.integer("padding_width"),
          c.integer("dilation_height"), c.integer("dilation_width"),  c.integer("groups")};
}

Parameter parameter_of(simt::Case& c, const std::string& name) {
  return {c.array<const void>(name.c_str()), Dtype(c.integer((name + ".dtype").c_str())), 1};
}

ParameterGradient gradient_of(simt::Case& c, const std::string& name) {
  return {c.array<void>(("grad_" + name).c_str()), Dtype(c.integer((name + ".dtype").c_str()))};
}

}  // namespace

SIMT_CASE(norm_act_conv) {
  const ConvolutionSizes sizes = sizes_of(c);
  c.check(is_convolution_served(sizes) ? 0 : 1);
  NormActConv call{};
  call.shape = convolution_shape(sizes);
  call.dtype = Dtype(c.integer("dtype"));
  call.input = c.array<const void>("input");
  call.weight = c.array<const void>("weight");
  call.norm_weight = parameter_of(c, "norm_weight");
  call.norm_bias = parameter_of(c, "norm_bias");
  call.bias = parameter_of(c, "bias");
  call.num_groups = c.integer("num_groups");
  call.mean = parameter_of(c, "mean");
  call.variance = parameter_of(c, "variance");
  call.constant = c.integer("constant") != 0;
  call.eps = c.real("eps");
  call.parameter = c.real("parameter");
  call.activation = Activation(c.integer("activation"));
  call.activation_first = c.integer("activation_first") != 0;
  call.collect = c.integer("collect") != 0;
  const Target target = current_target();
  double* const statistics = c.array<double>("statistics");
  void* const room = c.workspace(norm_act_conv_forward_workspace(call, target), "workspace of forward");
  c.check(norm_act_conv_forward(call, c.array<void>("output"), statistics, room, target, nullptr));
  c.report("height", call.shape.out_height);
  c.report("width", call.shape.out_width);

  const NormActConvGradients gradients{c.array<const void>("grad_output"), c.array<void>("grad_input"),
                                       gradient_of(c, "norm_weight"),      gradient_of(c, "norm_bias"),
                                       gradient_of(c, "weight"),           gradient_of(c, "bias")};
  void* const more = c.workspace(norm_act_conv_backward_workspace(call, gradients, target), "workspace of backward");
  c.check(norm_act_conv_backward(call, statistics, gradients, more, target, nullptr));
}

SIMT_CASE(is_convolution_served) { c.report("served", is_convolution_served(sizes_of(c))); }

// What a block of each kernel takes on, without any tensor.
SIMT_CASE(convolution_plan) {
  const ConvolutionSizes sizes = sizes_of(c);
  ConvolutionCall call{};
  call.shape = convolution_shape(sizes);
  call.dtype = Dtype(c.integer("dtype"));
  call.vector_in = call.vector_out = c.integer("vector") != 0;
  call.prologue.by_sample = c.integer("by_sample") != 0;
  const Target target = current_target();
  const auto report_tiles = [&](const std::string& name, const DepthwiseTiles& tiles) {
    c.report((name + ".blocks").c_str(), tiles.blocks * tiles.column_blocks);
    c.report((name + ".shared_bytes").c_str(), int64_t(tiles.shared_bytes));
    c.report((name + ".outputs").c_str(), tiles.down.outputs * tiles.across.outputs);
    c.report((name + ".vectors").c_str(), 1 << tiles.vector_bits);
  };
  if (call.shape.depthwise) {
    report_tiles("forward", depthwise_forward_tiles(call, target));
    report_tiles("weight", depthwise_weight_tiles(call, target));
    c.report("input.blocks", depthwise_input_share(call, target).blocks());
  } else {
    c.report("forward.blocks", pointwise_forward_share(call, target).blocks());
    c.report("weight.blocks", pointwise_weight_share(call, target).blocks());
    c.report("input.blocks", pointwise_input_share(call, target).blocks());
  }
}
