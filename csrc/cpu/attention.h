// Multi-head attention on raw pointers: softmax(scale Q K^T + mask) V by blocks of keys (Dao et al. 2022, arXiv:2205.14135), and
// its gradients, for which the weights are computed again from the log-sum-exp of each row.
#pragma once

#include <cstdint>
#include <vector>

#include "../types.h"

namespace fastdl {

// A tensor (N, H, length, features), or a mask (N, H, L, S); strides in values, 0 where it is broadcast.
struct Operand4 {
  void* data = nullptr;
  int64_t sample = 0, head = 0, row = 0, column = 0;
};

// A matrix of rows' numbers (N, H, L): float, or double for double.
struct RowNumbers {
  void* data = nullptr;
  int64_t sample = 0, head = 0, row = 0;
};

// Queries that see keys of the same range alone: a sample, or one of several sequences in a sample.
struct Sequence {
  int64_t sample, first_query, queries, first_key, keys;
  int64_t offset;  // the position of the first query among the keys
};

enum class MaskType { none, boolean, as_query, float32 };

struct Attention {
  Dtype dtype;
  int64_t samples, heads, key_heads, length, keys, features, value_features;
  Operand4 query, key, value, mask;
  MaskType mask_type = MaskType::none;
  int64_t mask_sizes[4] = {1, 1, 1, 1};
  std::vector<Sequence> sequences;
  double scale, softcap;
  int64_t window_left, window_right;  // -1 for no limit
  uint64_t seed = 0;
  int32_t dropped = -1;  // of 65,536 levels; -1 without dropout

  int64_t group() const { return key_heads > 0 ? heads / key_heads : 1; }
};

// All of the output and of log_sum is written.
void attention_forward(const Attention& call, const Operand4& output, const RowNumbers& log_sum);

struct AttentionGradients {
  Operand4 grad_output, output;
  RowNumbers grad_log_sum, log_sum;  // the first may be null
  Operand4 query, key, value, mask;  // what is written; null where it is not wanted
};
// All of what is wanted is written.
void attention_backward(const Attention& call, const AttentionGradients& gradients);

}  // namespace fastdl
