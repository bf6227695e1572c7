// BatchNorm with activation and residual (Ioffe & Szegedy 2015, arXiv:1502.03167): a slab is a channel of all samples.
#include "batch_norm.h"
#include "elements.cuh"
#include "norm_run.h"

namespace fastdl::cuda {
namespace batch_norm_statistics {

constexpr int threads = 128;

__device__ __forceinline__ void move_towards(const RunningStatistic& running, int64_t channel, double batch, double momentum) {
  if (!running.values) return;
  const int64_t at = channel * running.stride;
  // In float, as torch moves them, but for statistics in double.
  if (running.dtype == Dtype::float64) {
    double& value = static_cast<double*>(running.values)[at];
    value = (1 - momentum) * value + momentum * batch;
    return;
  }
  const float value = read<float>({running.values, running.dtype, 1}, at);
  write(running.values, running.dtype, at, float(1 - momentum) * value + float(momentum) * float(batch));
}

__global__ void __launch_bounds__(threads)
    update(const RunningStatistic mean, const RunningStatistic variance, const double* const statistics, const int64_t channels,
           const double unbiased, const double momentum) {
  const int64_t channel = int64_t(blockIdx.x) * threads + threadIdx.x;
  if (channel >= channels) return;
  move_towards(mean, channel, statistics[channel], momentum);
  move_towards(variance, channel, statistics[channels + channel] * unbiased, momentum);
}

}  // namespace batch_norm_statistics

namespace {

Task task_of(const Norm& norm, bool given) { return {norm, norm.channels, true, given}; }

}  // namespace

size_t batch_norm_forward_workspace(const Norm& norm, bool given, const Target& target) {
  return forward_workspace(task_of(norm, given), target);
}

size_t batch_norm_backward_workspace(const Norm& norm, bool given, const NormGradients& gradients, const Target& target) {
  return backward_workspace(task_of(norm, given), gradients, target);
}

int batch_norm_forward(const Norm& norm, const Parameter& running_mean, const Parameter& running_var, void* output,
                       double* statistics, void* workspace, const Target& target, void* stream) {
  const bool given = running_mean.values && running_var.values;
  return run_forward(task_of(norm, given), running_mean, running_var, output, statistics, workspace, target, stream);
}

int batch_norm_backward(const Norm& norm, bool given, const double* statistics, const NormGradients& gradients, void* workspace,
                        const Target& target, void* stream) {
  return run_backward(task_of(norm, given), statistics, gradients, workspace, target, stream);
}

int update_running_statistics(const RunningStatistic& mean, const RunningStatistic& variance, const double* statistics,
                              int64_t channels, int64_t count, double momentum, void* stream) {
  if (channels == 0 || (!mean.values && !variance.values)) return 0;
  const double unbiased = count > 1 ? double(count) / double(count - 1) : 1.0;
  const dim3 grid(unsigned((channels + batch_norm_statistics::threads - 1) / batch_norm_statistics::threads));
  return device::launch(&batch_norm_statistics::update, grid, dim3(batch_norm_statistics::threads), 0,
                        static_cast<device::Stream>(stream), mean, variance, statistics, channels, unbiased, momentum);
}

}  // namespace fastdl::cuda
