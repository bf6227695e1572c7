// BatchNorm's forward, the update of running statistics, and the backward, as one case.
#include "batch_norm.h"

#include "norm_case.h"

using namespace fastdl::cuda;

namespace {

RunningStatistic running(simt::Case& c, const std::string& tensor) {
  return {c.array<void>(tensor.c_str()), fastdl::Dtype(c.integer((tensor + ".dtype").c_str())),
          c.integer((tensor + ".stride").c_str())};
}

}  // namespace

SIMT_CASE(batch_norm) {
  const Norm norm = norm_of(c);
  const bool given = c.integer("given") != 0;
  const Target target = target_of(c);
  void* const output = c.array<void>("output");
  double* const statistics = c.array<double>("statistics");
  const Task task{norm, norm.channels, true, given};
  const bool empty = norm.samples == 0 || norm.positions == 0;
  const Parameter mean = given ? parameter_of(c, "running_mean") : Parameter{};
  const Parameter variance = given ? parameter_of(c, "running_var") : Parameter{};
  void* const room = c.workspace(batch_norm_forward_workspace(norm, given, target), "workspace of forward");
  c.check(batch_norm_forward(norm, mean, variance, output, statistics, room, target, nullptr));
  if (!empty) report(c, "forward", forward_plan(task, output, target));
  if (!given && !empty)
    c.check(update_running_statistics(running(c, "running_mean"), running(c, "running_var"), statistics, norm.channels,
                                      norm.samples * norm.positions, c.real("momentum"), nullptr));

  const NormGradients gradients = gradients_of(c);
  void* const more = c.workspace(batch_norm_backward_workspace(norm, given, gradients, target), "workspace of backward");
  c.check(batch_norm_backward(norm, given, statistics, gradients, more, target, nullptr));
  if (!empty) report(c, "backward", backward_plan(task, gradients, target));
}
