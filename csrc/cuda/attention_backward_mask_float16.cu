// The gradient of an additive mask by mma for float16.
#include "attention_backward_mask.cuh"

int fastdl::cuda::launch_attention_backward_mask_float16(const AttentionBackward& call, unsigned blocks, void* stream) {
  return attention_backward_mask::launch<half_bits>(call, blocks, stream);
}
