// Root-mean-square normalisation (Zhang & Sennrich 2019, arXiv:1910.07467): the kernels of row_norm_forward.cuh and
// row_norm_backward.cuh without a mean.
#include "row_norm_backward.cuh"
#include "row_norm_forward.cuh"

namespace fastdl::cuda {

int rms_norm_forward(const RowNorm& norm, const RowNormResults& results, void* stream) {
  return row_norm_forward::run<false>(norm, results, stream);
}

size_t rms_norm_backward_workspace(const RowNorm& norm, const RowNormGradients& gradients, const Target& target) {
  return row_norm_backward::workspace_bytes<false>(norm, gradients, target);
}

int rms_norm_backward(const RowNorm& norm, const float* statistics, const RowNormGradients& gradients, void* workspace,
                      const Target& target, void* stream) {
  return row_norm_backward::run<false>(norm, statistics, gradients, workspace, target, stream);
}

}  // namespace fastdl::cuda
