// Layer normalisation (Ba et al. 2016, arXiv:1607.06450): the kernels of row_norm_forward.cuh and row_norm_backward.cuh with a
// mean.
#include "row_norm_backward.cuh"
#include "row_norm_forward.cuh"

namespace fastdl::cuda {

int layer_norm_forward(const RowNorm& norm, const RowNormResults& results, void* stream) {
  return row_norm_forward::run<true>(norm, results, stream);
}

size_t layer_norm_backward_workspace(const RowNorm& norm, const RowNormGradients& gradients, const Target& target) {
  return row_norm_backward::workspace_bytes<true>(norm, gradients, target);
}

int layer_norm_backward(const RowNorm& norm, const float* statistics, const RowNormGradients& gradients, void* workspace,
                        const Target& target, void* stream) {
  return row_norm_backward::run<true>(norm, statistics, gradients, workspace, target, stream);
}

}  // namespace fastdl::cuda
