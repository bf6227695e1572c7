// GroupNorm's forward, and its backward from the statistics of that, as one case.
#include "group_norm.h"

#include "norm_case.h"

using namespace fastdl::cuda;

SIMT_CASE(group_norm) {
  const Norm norm = norm_of(c);
  const int64_t groups = c.integer("groups");
  const Target target = target_of(c);
  void* const output = c.array<void>("output");
  double* const statistics = c.array<double>("statistics");
  const Task task{norm, groups, false, false};
  const bool empty = norm.samples == 0 || norm.positions == 0;
  void* const room = c.workspace(group_norm_forward_workspace(norm, groups, target), "workspace of forward");
  c.check(group_norm_forward(norm, groups, output, statistics, room, target, nullptr));
  if (!empty) report(c, "forward", forward_plan(task, output, target));

  const NormGradients gradients = gradients_of(c);
  void* const more = c.workspace(group_norm_backward_workspace(norm, groups, gradients, target), "workspace of backward");
  c.check(group_norm_backward(norm, groups, statistics, gradients, more, target, nullptr));
  if (!empty) report(c, "backward", backward_plan(task, gradients, target));
}
