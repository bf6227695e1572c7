// What attention's forward kernels are handed, and their launchers, which are compiled by dtype.
#pragma once

#include "attention.h"

namespace fastdl::cuda {

struct AttentionForward {
  Attention attention;
  AttentionTensor output;
  AttentionRowNumbers log_sum;
  // Rows of a block are queries of one head; or, of `packed` heads that share their keys, (query, head) pairs, so that few queries
  // fill a block and keys are read once.
  int packed;
  int64_t tiles;  // blocks along the rows
  // Blocks along the keys. With more than one, each leaves its output (splits, rows, features) and log-sum-exp (splits, rows) in
  // the workspace, to be merged.
  int splits;
  float *partial_output, *partial_log_sum;
  bool by_wgmma;
  int first_feature;  // of the values that this launch sums up
  int64_t first_block;
};

int launch_attention_forward_float(const AttentionForward& call, unsigned blocks, void* stream);
int launch_attention_forward_bfloat16(const AttentionForward& call, unsigned blocks, void* stream);
int launch_attention_forward_float16(const AttentionForward& call, unsigned blocks, void* stream);
// sm_90a alone, and rows that tensor copies take; blocks of 128 rows.
int launch_attention_forward_wgmma_bfloat16(const AttentionForward& call, unsigned blocks, void* stream);
int launch_attention_forward_wgmma_float16(const AttentionForward& call, unsigned blocks, void* stream);
int launch_attention_merge(const AttentionForward& call, void* stream);

}  // namespace fastdl::cuda
