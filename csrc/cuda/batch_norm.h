// BatchNorm with activation and residual on a GPU. See norm.h; every function returns 0, or an error for error_text.
#pragma once

#include "norm.h"

namespace fastdl::cuda {

// Bytes of workspace that the call with the same arguments needs, maybe 0; at an address that is a multiple of 16.
// given: whether the statistics are constants (evaluation).
size_t batch_norm_forward_workspace(const Norm& norm, bool given, const Target& target);
size_t batch_norm_backward_workspace(const Norm& norm, bool given, const NormGradients& gradients, const Target& target);

// statistics: (2, channels), the means and biased variances, written by forward and read by backward. They are the batch's, or
// copies of running_mean and running_var where these are given: both or neither.
int batch_norm_forward(const Norm& norm, const Parameter& running_mean, const Parameter& running_var, void* output,
                       double* statistics, void* workspace, const Target& target, void* stream);
int batch_norm_backward(const Norm& norm, bool given, const double* statistics, const NormGradients& gradients, void* workspace,
                        const Target& target, void* stream);

// A running statistic, changed in place. values may be null: there is none.
struct RunningStatistic {
  void* values;
  Dtype dtype;
  int64_t stride;  // in values
};

// running = (1 - momentum) running + momentum batch, the variance made unbiased; count is the number of values a channel.
int update_running_statistics(const RunningStatistic& mean, const RunningStatistic& variance, const double* statistics,
                              int64_t channels, int64_t count, double momentum, void* stream);

}  // namespace fastdl::cuda
