// Attention's forward by mma for bfloat16.
#include "attention_forward.cuh"

int fastdl::cuda::launch_attention_forward_bfloat16(const AttentionForward& call, unsigned blocks, void* stream) {
  return attention_forward_mma::launch_by_width<bfloat16_bits>(call, blocks, stream);
}
