// Attention's forward by mma for float16.
#include "attention_forward.cuh"

int fastdl::cuda::launch_attention_forward_float16(const AttentionForward& call, unsigned blocks, void* stream) {
  return attention_forward_mma::launch_by_width<half_bits>(call, blocks, stream);
}
