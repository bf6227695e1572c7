// Layer normalisation (Ba et al. 2016, arXiv:1607.06450) and root-mean-square normalisation (Zhang & Sennrich 2019,
// arXiv:1910.07467) of rows on a GPU. Host side: what a call is, and functions that queue its work on a stream. Free of torch and
// of CUDA.
#pragma once

#include "../row_norm_types.h"
#include "norm.h"

namespace fastdl::cuda {

// Rows of `width` contiguous values, of the call's dtype; values may be null: there is none.
struct RowTensor {
  const void* values;
  RowStrides strides;
};

struct RowNorm {
  Dtype dtype;                 // of activations: float32, float16 or bfloat16
  int64_t rows, inner, width;  // inner: see RowStrides
  RowTensor input, residual;
  Parameter weight, bias;  // of float32 or of the activations' dtype, with a stride of 1; layer norm alone has a bias
  double eps;
};

// Contiguous. `sum`, of input and residual, is there if there is a residual. statistics: mean and 1 / sqrt(variance + eps), (2,
// rows); of rms_norm 1 / sqrt(mean square + eps), (rows).
struct RowNormResults {
  void *output, *sum;
  float* statistics;
};

struct RowNormGradients {
  RowTensor output, sum;           // given; that of the sum may be null
  void* input;                     // wanted, contiguous; may be null
  ParameterGradient weight, bias;  // wanted where not null
};

// Queue the work on `stream`, a cudaStream_t. Return a CUDA error, 0 for none. In backward the input is what was normalised, the
// sum where there was one, and there is no residual. The workspace is device memory that backward needs while it runs.
int layer_norm_forward(const RowNorm& norm, const RowNormResults& results, void* stream);
size_t layer_norm_backward_workspace(const RowNorm& norm, const RowNormGradients& gradients, const Target& target);
int layer_norm_backward(const RowNorm& norm, const float* statistics, const RowNormGradients& gradients, void* workspace,
                        const Target& target, void* stream);

int rms_norm_forward(const RowNorm& norm, const RowNormResults& results, void* stream);
size_t rms_norm_backward_workspace(const RowNorm& norm, const RowNormGradients& gradients, const Target& target);
int rms_norm_backward(const RowNorm& norm, const float* statistics, const RowNormGradients& gradients, void* workspace,
                      const Target& target, void* stream);

}  // namespace fastdl::cuda
