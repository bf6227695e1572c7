// Attention's forward by wgmma for float16.
#include "attention_forward_wgmma.cuh"

int fastdl::cuda::launch_attention_forward_wgmma_float16(const AttentionForward& call, unsigned blocks, void* stream) {
  return attention_forward_wgmma::launch_by_width<half_bits>(call, blocks, stream);
}
