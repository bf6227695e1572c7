// The launches of a normalisation, one after another on a stream; what group_norm.cu and batch_norm.cu have in common.
#pragma once

#include "norm_plan.h"

namespace fastdl::cuda {

size_t forward_workspace(const Task& task, const Target& target);
size_t backward_workspace(const Task& task, const NormGradients& gradients, const Target& target);

// mean and variance: by channel, where task.constant.
int run_forward(const Task& task, const Parameter& mean, const Parameter& variance, void* output, double* statistics,
                void* workspace, const Target& target, void* stream);
int run_backward(const Task& task, const double* statistics, const NormGradients& gradients, void* workspace, const Target& target,
                 void* stream);

// The plans that these follow, for tests that ask which path was taken.
Plan forward_plan(const Task& task, const void* output, const Target& target);
Plan backward_plan(const Task& task, const NormGradients& gradients, const Target& target);

}  // namespace fastdl::cuda
