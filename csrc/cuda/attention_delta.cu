// What backward needs of each query: its log-sum-exp in the unit of exponents, and delta = sum(grad_output output) - grad_log_sum,
// which is subtracted from the gradient of each weight (Dao 2023, arXiv:2307.08691, algorithm 2). One warp a query.
#include "attention_backward.h"
#include "attention_call.cuh"

namespace fastdl::cuda {
namespace attention_delta {

inline constexpr int threads = 128;

template <class T>
__global__ void __launch_bounds__(threads) kernel(const AttentionBackward call, int64_t rows) {
  const Attention& attention = call.attention;
  const AttentionGradients& gradients = call.gradients;
  const int64_t row = (call.first_block + blockIdx.x) * (threads / 32) + threadIdx.x / 32;
  if (row >= rows) return;
  const int lane = int(threadIdx.x % 32);
  const int64_t query = row % attention.length, head = row / attention.length % attention.heads,
                sample = row / attention.length / attention.heads;
  const T* const grad_output = rows_of<const T>(gradients.grad_output, sample, head, query);
  const T* const output = rows_of<const T>(gradients.output, sample, head, query);
  float sum = 0.0f;
  for (int feature = lane; feature < attention.value_features; feature += 32)
    sum += device::widen(device::load_vector<T, device::Cache::read_only>(grad_output + feature * gradients.grad_output.column)) *
           device::widen(device::load_vector<T, device::Cache::read_only>(output + feature * gradients.output.column));
#pragma unroll
  for (int distance = 16; distance > 0; distance /= 2) sum += device::shuffle_xor(sum, distance);
  if (lane != 0) return;
  const auto number_of = [&](const AttentionRowNumbers& numbers) {
    return numbers.values[sample * numbers.sample + head * numbers.head + query * numbers.row];
  };
  const float log_sum = number_of(gradients.log_sum);
  // A query that sees nothing has no gradient: e^(s - inf) is 0 whatever s is.
  const bool sees_nothing = log_sum == -INFINITY;
  call.log_sum[row] = sees_nothing ? INFINITY : log_sum * exponent_unit<T>;
  call.delta[row] = sees_nothing ? 0.0f : sum - (gradients.grad_log_sum.values ? number_of(gradients.grad_log_sum) : 0.0f);
}

template <class T>
int launch(AttentionBackward call, void* stream) {
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

}  // namespace attention_delta

int launch_attention_delta(const AttentionBackward& call, void* stream) {
  switch (call.attention.dtype) {
    case Dtype::bfloat16: return attention_delta::launch<bfloat16_bits>(call, stream);
    case Dtype::float16: return attention_delta::launch<half_bits>(call, stream);
    default: return attention_delta::launch<float>(call, stream);
  }
}

}  // namespace fastdl::cuda
