// The queries' gradients by mma for float16.
#include "attention_backward_query.cuh"

int fastdl::cuda::launch_attention_backward_query_float16(const AttentionBackward& call, unsigned blocks, void* stream) {
  return attention_backward_query::launch<half_bits>(call, blocks, stream);
}
