// RMSNorm (Zhang & Sennrich 2019, arXiv:1910.07467) of the sum of input and residual, forward and backward.
#include "rms_norm.h"

#include "row_norm_backward.h"
#include "row_norm_forward.h"

namespace fastdl {

void rms_norm_forward(const RowNorm& norm, const RowNormResults& results) {
  with_dtype(norm.dtype, [&](auto t) { RowNormForward<decltype(t), false>(norm, results).run(); });
}

void rms_norm_backward(const RowNorm& norm, const RowNormGradients& gradients) {
  with_dtype(norm.dtype, [&](auto t) { RowNormBackward<decltype(t), false>(norm, gradients).run(); });
}

}  // namespace fastdl
