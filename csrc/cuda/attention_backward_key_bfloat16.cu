// The gradients of keys and values by mma for bfloat16.
#include "attention_backward_key.cuh"

int fastdl::cuda::launch_attention_backward_key_bfloat16(const AttentionBackward& call, unsigned blocks, void* stream) {
  return attention_backward_key::launch<bfloat16_bits>(call, blocks, stream);
}
