// residual + input * kept / (1 - p), what is kept being a function of a seed and of each value's place
// (fastdl/reference/dropout.py).
#pragma once

#include "../types.h"

namespace fastdl {

// A dense tensor as samples x lines x width x channels in memory; its rows, by which choices are counted, are those of
// samples x channels x lines x width. Contiguous tensors have one channel and one line, and a sample for each row.
struct Dropout {
  Dtype dtype;
  int64_t samples, channels, lines, width;
  const void *input, *residual;  // residual may be null
  void* output;
  uint64_t seed;
  int32_t dropped;  // levels of 65536
};

void dropout_forward(const Dropout& call);

}  // namespace fastdl
