// GroupNorm with activation (and residual) on a GPU. See norm.h; every function returns 0, or an error for error_text.
#pragma once

#include "norm.h"

namespace fastdl::cuda {

// Bytes of workspace that the call with the same arguments needs, maybe 0; at an address that is a multiple of 16.
size_t group_norm_forward_workspace(const Norm& norm, int64_t groups, const Target& target);
size_t group_norm_backward_workspace(const Norm& norm, int64_t groups, const NormGradients& gradients, const Target& target);

// statistics: (2, samples, groups), the means and biased variances, written by forward and read by backward.
int group_norm_forward(const Norm& norm, int64_t groups, void* output, double* statistics, void* workspace, const Target& target,
                       void* stream);
int group_norm_backward(const Norm& norm, int64_t groups, const double* statistics, const NormGradients& gradients, void* workspace,
                        const Target& target, void* stream);

}  // namespace fastdl::cuda
