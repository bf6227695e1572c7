// A normalisation's arguments from those of a test, in the names that tests/simt/norms/calls.py gives them.
#pragma once

#include <string>

#include "device.cuh"
#include "norm_run.h"
#include "simt/case.h"

namespace fastdl::cuda {

inline Strides strides_of(simt::Case& c, const std::string& tensor) {
  return {c.integer((tensor + ".sample").c_str()), c.integer((tensor + ".channel").c_str()),
          c.integer((tensor + ".position").c_str())};
}

inline Parameter parameter_of(simt::Case& c, const std::string& tensor) {
  return {c.array<const void>(tensor.c_str()), Dtype(c.integer((tensor + ".dtype").c_str())),
          c.integer((tensor + ".stride").c_str())};
}

inline Norm norm_of(simt::Case& c) {
  Norm norm{};
  norm.dtype = Dtype(c.integer("dtype"));
  norm.samples = c.integer("samples");
  norm.channels = c.integer("channels");
  norm.positions = c.integer("positions");
  norm.channels_last = c.integer("channels_last") != 0;
  norm.input = c.array<const void>("input");
  norm.residual = c.array<const void>("residual");
  norm.input_strides = strides_of(c, "input");
  norm.residual_strides = strides_of(c, "residual");
  norm.output_strides = strides_of(c, "output");
  norm.weight = parameter_of(c, "weight");
  norm.bias = parameter_of(c, "bias");
  norm.eps = c.real("eps");
  norm.parameter = c.real("parameter");
  norm.activation = Activation(c.integer("activation"));
  norm.activation_first = c.integer("activation_first") != 0;
  return norm;
}

inline NormGradients gradients_of(simt::Case& c) {
  NormGradients gradients{};
  gradients.output = c.array<const void>("grad_output");
  gradients.output_strides = strides_of(c, "grad_output");
  gradients.input = c.array<void>("grad_input");
  gradients.residual = c.array<void>("grad_residual");
  gradients.weight = {c.array<void>("grad_weight"), Dtype(c.integer("weight.dtype"))};
  gradients.bias = {c.array<void>("grad_bias"), Dtype(c.integer("bias.dtype"))};
  return gradients;
}

inline Target target_of(simt::Case& c) {
  Target target = current_target();
  target.path = Path(c.integer("path"));
  return target;
}

inline void report(simt::Case& c, const std::string& step, const Plan& plan) {
  c.report((step + ".path").c_str(), int64_t(plan.path));
  c.report((step + ".rows").c_str(), plan.by_rows);
  c.report((step + ".vector").c_str(), plan.launch.vector);
  c.report((step + ".ranks").c_str(), plan.ranks);
  c.report((step + ".blocks").c_str(), plan.launch.blocks);
}

}  // namespace fastdl::cuda
