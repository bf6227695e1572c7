// Joins the outputs of blocks that each saw a part of the keys, in their order; one warp a row.
#include "attention_forward.h"
#include "device.cuh"

namespace fastdl::cuda {
namespace attention_merge {

inline constexpr int threads = 128;

template <class T>
__global__ void __launch_bounds__(threads) kernel(const AttentionForward call, int64_t rows) {
  const Attention& attention = call.attention;
  const int64_t row = (call.first_block + blockIdx.x) * (threads / 32) + threadIdx.x / 32;
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

template <class T>
int launch(AttentionForward call, void* stream) {
  const int64_t rows = call.attention.samples * call.attention.heads * call.attention.length;
  const int64_t blocks = (rows + threads / 32 - 1) / (threads / 32), most = int64_t(1) << 30;
  for (call.first_block = 0; call.first_block < blocks; call.first_block += most) {
    const int64_t rest = blocks - call.first_block;
    const int status = device::launch(kernel<T>, dim3(unsigned(rest < most ? rest : most)), dim3(threads), 0,
                                      static_cast<device::Stream>(stream), call, rows);
    if (status != 0) return status;
  }
  return 0;
}

}  // namespace attention_merge

int launch_attention_merge(const AttentionForward& call, void* stream) {
  switch (call.attention.dtype) {
    case Dtype::bfloat16: return attention_merge::launch<device::bfloat16_bits>(call, stream);
    case Dtype::float16: return attention_merge::launch<device::half_bits>(call, stream);
    default: return attention_merge::launch<float>(call, stream);
  }
}

}  // namespace fastdl::cuda
