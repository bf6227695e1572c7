// The queries' gradients by mma for bfloat16.
#include "attention_backward_query.cuh"

int fastdl::cuda::launch_attention_backward_query_bfloat16(const AttentionBackward& call, unsigned blocks, void* stream) {
  return attention_backward_query::launch<bfloat16_bits>(call, blocks, stream);
}
