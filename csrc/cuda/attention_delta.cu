// What backward needs of each query: its log-sum-exp in the unit of exponents, and delta = sum(grad_output output) - grad_log_sum,
// which is subtracted from the gradient of each weight (Dao 2023, arXiv:2307.08691, algorithm 2). One warp a query.
#include "attention_backward.h"
#include "attention_call.cuh"
#include "attention_rows.cuh"

namespace fastdl::cuda {
namespace attention_delta {

template <class T>
__global__ void __launch_bounds__(row_threads) kernel(const AttentionBackward call, int64_t rows) {
  const Attention& attention = call.attention;
  const AttentionGradients& gradients = call.gradients;
  const int64_t row = row_of_warp(call);
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

}  // namespace attention_delta

int launch_attention_delta(const AttentionBackward& call, void* stream) {
  switch (call.attention.dtype) {
    case Dtype::bfloat16: return launch_rows(attention_delta::kernel<bfloat16_bits>, call, stream);
    case Dtype::float16: return launch_rows(attention_delta::kernel<half_bits>, call, stream);
    default: return launch_rows(attention_delta::kernel<float>, call, stream);
  }
}

}  // namespace fastdl::cuda
