// Attention's forward by mma for float.
#include "attention_forward.cuh"

int fastdl::cuda::launch_attention_forward_float(const AttentionForward& call, unsigned blocks, void* stream) {
  return attention_forward_mma::launch_by_width<float>(call, blocks, stream);
}
