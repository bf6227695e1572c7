// The gradients of keys and values by mma for float.
#include "attention_backward_key.cuh"

int fastdl::cuda::launch_attention_backward_key_float(const AttentionBackward& call, unsigned blocks, void* stream) {
  return attention_backward_key::launch<float>(call, blocks, stream);
}
