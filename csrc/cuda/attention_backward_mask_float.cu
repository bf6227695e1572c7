// The gradient of an additive mask by mma for float.
#include "attention_backward_mask.cuh"

int fastdl::cuda::launch_attention_backward_mask_float(const AttentionBackward& call, unsigned blocks, void* stream) {
  return attention_backward_mask::launch<float>(call, blocks, stream);
}
