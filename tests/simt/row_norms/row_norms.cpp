// Layer norm's or RMS norm's forward, and its backward from what that leaves, as one case.
#include <string>

#include "device.cuh"
#include "row_norm_plan.h"
#include "simt/case.h"

using namespace fastdl;
using namespace fastdl::cuda;

namespace {

RowTensor tensor_of(simt::Case& c, const std::string& name) {
  return {c.array<const void>(name.c_str()), {c.integer((name + ".outer").c_str()), c.integer((name + ".inner").c_str())}};
}

Parameter parameter_of(simt::Case& c, const std::string& name) {
  return {c.array<const void>(name.c_str()), Dtype(c.integer((name + ".dtype").c_str())), 1};
}

ParameterGradient gradient_of(simt::Case& c, const std::string& name) {
  return {c.array<void>(("grad_" + name).c_str()), Dtype(c.integer(("grad_" + name + ".dtype").c_str()))};
}

void report(simt::Case& c, const std::string& step, const RowNormPlan& plan) {
  c.report((step + ".path").c_str(), int64_t(plan.path));
  c.report((step + ".vector").c_str(), plan.vector);
  c.report((step + ".team").c_str(), plan.path == RowPath::warp ? 1 << plan.team_bits : plan.threads);
  c.report((step + ".blocks").c_str(), plan.blocks);
  c.report((step + ".sum_rows").c_str(), plan.sum_rows);
}

}  // namespace

SIMT_CASE(row_norm) {
  const bool centered = c.integer("centered") != 0;
  RowNorm norm{};
  norm.dtype = Dtype(c.integer("dtype"));
  norm.rows = c.integer("rows");
  norm.inner = c.integer("inner");
  norm.width = c.integer("width");
  norm.input = tensor_of(c, "input");
  norm.residual = tensor_of(c, "residual");
  norm.weight = parameter_of(c, "weight");
  norm.bias = parameter_of(c, "bias");
  norm.eps = c.real("eps");
  const bool empty = norm.rows == 0 || norm.width == 0;
  const RowNormResults results{c.array<void>("output"), c.array<void>("sum"), c.array<float>("statistics")};
  c.check(centered ? layer_norm_forward(norm, results, nullptr) : rms_norm_forward(norm, results, nullptr));
  if (!empty) report(c, "forward", row_norm_forward_plan(norm, results));
  if (!c.array<void>("grad_output")) return;

  norm.inner = c.integer("backward.inner");
  norm.input = {norm.residual.values ? results.sum : norm.input.values,
                {c.integer("normalized.outer"), c.integer("normalized.inner")}};
  norm.residual = {};
  const device::Machine machine = device::machine();
  const Target target{machine.multiprocessors, machine.shared_bytes, machine.capability, Path::automatic};
  const RowNormGradients gradients{tensor_of(c, "grad_output"), tensor_of(c, "grad_sum"), c.array<void>("grad_input"),
                                   gradient_of(c, "weight"), gradient_of(c, "bias")};
  const size_t bytes =
      centered ? layer_norm_backward_workspace(norm, gradients, target) : rms_norm_backward_workspace(norm, gradients, target);
  void* const workspace = c.workspace(bytes);
  c.check(centered ? layer_norm_backward(norm, results.statistics, gradients, workspace, target, nullptr)
                   : rms_norm_backward(norm, results.statistics, gradients, workspace, target, nullptr));
  if (!empty) report(c, "backward", row_norm_backward_plan(norm, gradients, target));
}

SIMT_CASE(row_norm_of_too_many_rows) {
  RowNorm norm{};
  norm.rows = norm.inner = c.integer("rows");
  norm.width = c.integer("width");
  float* const room = c.array<float>("output");
  norm.input = {room, {0, 0}};
  c.report("status", layer_norm_forward(norm, {room, nullptr, room}, nullptr));
}
