#pragma once

#include "normalize.h"

namespace fastdl {

// statistics: mean, then variance, of each sample's groups, (2, samples, groups).
void group_norm_forward(const Norm& norm, int64_t groups, void* output, double* statistics);
void group_norm_backward(const Norm& norm, int64_t groups, const double* statistics, const NormGradients& gradients);

}  // namespace fastdl
