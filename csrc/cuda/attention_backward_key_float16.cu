// The gradients of keys and values by mma for float16.
#include "attention_backward_key.cuh"

int fastdl::cuda::launch_attention_backward_key_float16(const AttentionBackward& call, unsigned blocks, void* stream) {
  return attention_backward_key::launch<half_bits>(call, blocks, stream);
}
