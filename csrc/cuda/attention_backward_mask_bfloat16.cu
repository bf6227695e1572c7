// The gradient of an additive mask by mma for bfloat16.
#include "attention_backward_mask.cuh"

int fastdl::cuda::launch_attention_backward_mask_bfloat16(const AttentionBackward& call, unsigned blocks, void* stream) {
  return attention_backward_mask::launch<bfloat16_bits>(call, blocks, stream);
}
