// LayerNorm (Ba et al. 2016, arXiv:1607.06450) of the sum of input and residual, forward and backward.
#include "layer_norm.h"

#include "row_norm_backward.h"
#include "row_norm_forward.h"

namespace fastdl {

void layer_norm_forward(const RowNorm& norm, const RowNormResults& results) {
  with_dtype(norm.dtype, [&](auto t) { RowNormForward<decltype(t), true>(norm, results).run(); });
}

void layer_norm_backward(const RowNorm& norm, const RowNormGradients& gradients) {
  with_dtype(norm.dtype, [&](auto t) { RowNormBackward<decltype(t), true>(norm, gradients).run(); });
}

}  // namespace fastdl
