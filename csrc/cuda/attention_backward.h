// What attention's backward kernels are handed, and their launchers, which are compiled by dtype.
//
// Weights are computed again from the scores and the log-sum-exp of each query. One kernel holds a block of keys and goes over the
// queries, another holds a block of queries and goes over the keys: no sum depends on the order in which blocks finish.
#pragma once

#include "attention.h"

namespace fastdl::cuda {

struct AttentionBackward {
  Attention attention;
  AttentionGradients gradients;
  // Of each query (N, H, L): the log-sum-exp in the unit of exponents, and sum(grad_output output) - grad_log_sum.
  float *log_sum, *delta;
  int64_t tiles;  // blocks along the rows of the kernel
  int64_t first_block;
};

int launch_attention_delta(const AttentionBackward& call, void* stream);

int launch_attention_backward_query_float(const AttentionBackward& call, unsigned blocks, void* stream);
int launch_attention_backward_query_bfloat16(const AttentionBackward& call, unsigned blocks, void* stream);
int launch_attention_backward_query_float16(const AttentionBackward& call, unsigned blocks, void* stream);
int launch_attention_backward_key_float(const AttentionBackward& call, unsigned blocks, void* stream);
int launch_attention_backward_key_bfloat16(const AttentionBackward& call, unsigned blocks, void* stream);
int launch_attention_backward_key_float16(const AttentionBackward& call, unsigned blocks, void* stream);
int launch_attention_backward_mask_float(const AttentionBackward& call, unsigned blocks, void* stream);
int launch_attention_backward_mask_bfloat16(const AttentionBackward& call, unsigned blocks, void* stream);
int launch_attention_backward_mask_float16(const AttentionBackward& call, unsigned blocks, void* stream);

}  // namespace fastdl::cuda
