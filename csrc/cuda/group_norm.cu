// GroupNorm with activation (Wu & He 2018, arXiv:1803.08494): a slab is a group of channels of one sample.
#include "group_norm.h"
#include "norm_run.h"

namespace fastdl::cuda {
namespace {

Task task_of(const Norm& norm, int64_t groups) { return {norm, groups, false, false}; }

}  // namespace

size_t group_norm_forward_workspace(const Norm& norm, int64_t groups, const Target& target) {
  return forward_workspace(task_of(norm, groups), target);
}

size_t group_norm_backward_workspace(const Norm& norm, int64_t groups, const NormGradients& gradients, const Target& target) {
  return backward_workspace(task_of(norm, groups), gradients, target);
}

int group_norm_forward(const Norm& norm, int64_t groups, void* output, double* statistics, void* workspace, const Target& target,
                       void* stream) {
  return run_forward(task_of(norm, groups), {}, {}, output, statistics, workspace, target, stream);
}

int group_norm_backward(const Norm& norm, int64_t groups, const double* statistics, const NormGradients& gradients, void* workspace,
                        const Target& target, void* stream) {
  return run_backward(task_of(norm, groups), statistics, gradients, workspace, target, stream);
}

}  // namespace fastdl::cuda
