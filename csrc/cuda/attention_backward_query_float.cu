// The queries' gradients by mma for float.
#include "attention_backward_query.cuh"

int fastdl::cuda::launch_attention_backward_query_float(const AttentionBackward& call, unsigned blocks, void* stream) {
  return attention_backward_query::launch<float>(call, blocks, stream);
}
