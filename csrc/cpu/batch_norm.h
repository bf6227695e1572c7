#pragma once

#include "normalize.h"

namespace fastdl {

// statistics: mean, then variance, of each channel, (2, channels); found in the batch, or given.
void batch_norm_forward(const Norm& norm, bool given, void* output, double* statistics);
void batch_norm_backward(const Norm& norm, bool given, const double* statistics, const NormGradients& gradients);

}  // namespace fastdl
