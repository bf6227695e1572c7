// Scaled dot-product attention (Vaswani et al. 2017, arXiv:1706.03762) in blocks of keys (Dao et al. 2022, arXiv:2205.14135). Host
// side: what a call is, and functions that queue its work on a stream. Free of torch and of CUDA.
#pragma once

#include <cstddef>
#include <cstdint>

#include "../types.h"

namespace fastdl::cuda {

// (N, H, length, features) in values; 0 is an expanded dimension. `vector`: rows may be read in 16-byte pieces.
struct AttentionTensor {
  void* values = nullptr;
  int64_t sample = 0, head = 0, row = 0, column = 0;
  bool vector = false;
};

// int32 or int64 (`wide`); null where there is none.
struct AttentionIntegers {
  const void* values = nullptr;
  int64_t stride = 0;
  bool wide = false;
};

// (N, H, L) in float32.
struct AttentionRowNumbers {
  float* values = nullptr;
  int64_t sample = 0, head = 0, row = 0;
};

enum class AttentionMask { none, boolean, as_query, float32 };

struct Attention {
  Dtype dtype;
  int64_t samples, heads, key_heads;
  int64_t length, keys;  // of queries and of keys in memory, below 2^31
  int features, value_features;
  AttentionTensor query, key, value;
  AttentionTensor mask;  // strides of broadcast dimensions are 0
  AttentionMask mask_type = AttentionMask::none;
  int64_t mask_sizes[4] = {1, 1, 1, 1};
  float scale, softcap;
  int64_t window_left, window_right, offset;  // no further than 2^60 from 0
  AttentionIntegers query_offset;
  AttentionIntegers starts_q, starts_k;  // of sequences; their number is `sequences`
  int64_t sequences;                     // the samples where there are no starts
  int64_t longest_query, longest_key;    // of a sequence, at least
  int64_t dropped = 0;                   // of 65536 levels
  uint64_t seed = 0;                     // unless it lies on the device
  const int64_t* seed_on_device = nullptr;
};

struct AttentionGradients {
  AttentionTensor grad_output, output;
  AttentionRowNumbers log_sum, grad_log_sum;  // the latter may be null
  AttentionTensor query, key, value, mask;    // written; null where not wanted
};

// Whether rows of `features` values at these strides are read in 16-byte pieces.
bool attention_rows_in_vectors(const AttentionTensor& tensor, Dtype dtype);

// Bytes of device memory that a call needs while it runs.
size_t attention_forward_workspace(const Attention& attention);
size_t attention_backward_workspace(const Attention& attention, const AttentionGradients& gradients);

// Queue the work on `stream`, a cudaStream_t. Queries in no sequence are not written. Return a CUDA error, 0 for none.
int attention_forward(const Attention& attention, const AttentionTensor& output, const AttentionRowNumbers& log_sum,
                      void* workspace, void* stream);
int attention_backward(const Attention& attention, const AttentionGradients& gradients, void* workspace, void* stream);

}  // namespace fastdl::cuda
