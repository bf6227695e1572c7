// residual + input * kept / (1 - p) on a GPU, what is kept being a function of a seed and of each value's place
// (fastdl/reference/dropout.py). Host side: what a call is, and the function that queues its work on a stream. Free of torch and of
// CUDA.
#pragma once

#include "../types.h"

namespace fastdl::cuda {

// A dense tensor as samples x lines x width x channels in memory; its rows, by which choices are counted, are those of
// samples x channels x lines x width. Contiguous tensors have one channel and one line, and a sample for each row.
struct DropoutCall {
  Dtype dtype;  // float32, float16 or bfloat16
  int64_t samples, channels, lines, width;
  const void *input, *residual;  // residual may be null
  void* output;
  uint64_t seed;
  const int64_t* seed_on_device;  // in place of `seed` if not null: read when the kernel runs
  int32_t dropped;                // levels of 65536
};

// Part of a call's blocks, in the order of the values in memory; for tests of tensors that no memory holds.
struct DropoutBlocks {
  int64_t first = 0, end = INT64_MAX;
};

// How many blocks the whole call is.
int64_t dropout_blocks(const DropoutCall& call);

// Queues the work on `stream`, a cudaStream_t. Returns a CUDA error, 0 for none.
int dropout_forward(const DropoutCall& call, void* stream, const DropoutBlocks& part = {});

}  // namespace fastdl::cuda
