#pragma once

#include "row_norm.h"

namespace fastdl {

void rms_norm_forward(const RowNorm& norm, const RowNormResults& results);
void rms_norm_backward(const RowNorm& norm, const RowNormGradients& gradients);

}  // namespace fastdl
