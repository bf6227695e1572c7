// What layer_norm and rms_norm are asked to do, free of dtypes and of torch.
#pragma once

#include "../row_norm_types.h"
#include "../types.h"

namespace fastdl {

// A tensor that is read, in the call's dtype; null where there is none.
struct RowInput {
  const void* values = nullptr;
  RowStrides strides{0, 0};
};

// What is written is contiguous. Parameters, their gradients and statistics hold the type of the arithmetic: float, or double for
// double. Mean and bias are layer_norm's alone, and null for rms_norm.
struct RowNorm {
  Dtype dtype;
  int64_t rows, width, inner;  // inner: see RowStrides
  RowInput input, residual;    // in a backward `input` is what was normalised, the sum of the two
  const void *weight, *bias;   // (width) each; either may be null
  double eps;
};

struct RowNormResults {
  void *output, *sum;  // sum is null where there is no residual
  void *mean, *rstd;   // (rows) each
};

struct RowNormGradients {
  RowInput output, sum;         // given; sum may be null
  const void *mean, *rstd;      // as forward left them
  void *input, *weight, *bias;  // wanted; each may be null
};

}  // namespace fastdl
