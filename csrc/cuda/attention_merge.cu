// Joins the outputs of blocks that each saw a part of the keys, in their order; one warp a row.
#include "attention_forward.h"
#include "attention_rows.cuh"

namespace fastdl::cuda {
namespace attention_merge {

template <class T>
__global__ void __launch_bounds__(row_threads) kernel(const AttentionForward call, int64_t rows) {
  const Attention& attention = call.attention;
  const int64_t row = row_of_warp(call);
  if (row >= rows) return;
  const int lane = int(threadIdx.x % 32);
  float most = -INFINITY;
  for (int part = 0; part < call.splits; ++part) most = fmaxf(most, call.partial_log_sum[part * rows + row]);
  const float reference = most == -INFINITY ? 0.0f : most;
  float total = 0.0f;
  for (int part = 0; part < call.splits; ++part) total += expf(call.partial_log_sum[part * rows + row] - reference);
  const int64_t query = row % attention.length, head = row / attention.length % attention.heads,
                sample = row / attention.length / attention.heads;
  if (lane == 0)
    call.log_sum.values[sample * call.log_sum.sample + head * call.log_sum.head + query * call.log_sum.row] =
        total == 0.0f ? -INFINITY : most + logf(total);
  T* const to =
      static_cast<T*>(call.output.values) + sample * call.output.sample + head * call.output.head + query * call.output.row;
  for (int feature = lane; feature < attention.value_features; feature += 32) {
    float sum = 0.0f;
    for (int part = 0; part < call.splits; ++part) {
      const float weight = expf(call.partial_log_sum[part * rows + row] - reference);
      sum += weight * call.partial_output[(part * rows + row) * attention.value_features + feature];
    }
    to[feature * call.output.column] = device::narrow<T>(total == 0.0f ? 0.0f : sum / total);
  }
}

}  // namespace attention_merge

int launch_attention_merge(const AttentionForward& call, void* stream) {
  switch (call.attention.dtype) {
    case Dtype::bfloat16: return launch_rows(attention_merge::kernel<device::bfloat16_bits>, call, stream);
    case Dtype::float16: return launch_rows(attention_merge::kernel<device::half_bits>, call, stream);
    default: return launch_rows(attention_merge::kernel<float>, call, stream);
  }
}

}  // namespace fastdl::cuda
