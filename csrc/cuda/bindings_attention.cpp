// The CUDA attention kernels as ops of torch, in the LibTorch stable ABI: reads every tensor where it lies, allocates results in
// the layout that fastdl.ops.layout.empty_with_heads tells, and queues the work on the device's current stream.
#include <algorithm>
#include <cmath>
#include <limits>
#include <tuple>

#include "../attention_tensors.h"
#include "attention.h"
#include "cuda_tensors.h"

namespace fastdl::cuda {
namespace attention_ops {
namespace {

AttentionTensor operand_of(const Tensor& tensor) {
  const auto strides = tensor.strides();
  const auto step = [&](int dimension) { return tensor.size(dimension) == 1 ? 0 : strides[dimension]; };
  AttentionTensor operand;
  operand.values = const_cast<void*>(tensor.const_data_ptr());
  operand.sample = step(0);
  operand.head = step(1);
  operand.row = step(2);
  operand.column = tensor.size(3) == 1 ? 1 : strides[3];
  return operand;
}

AttentionRowNumbers row_numbers_of(const Tensor& tensor) {
  const auto strides = tensor.strides();
  return {static_cast<float*>(const_cast<void*>(tensor.const_data_ptr())), strides[0], strides[1], strides[2]};
}

AttentionIntegers integers_of(const MaybeTensor& tensor) {
  if (!tensor) return {};
  return {tensor->const_data_ptr(), tensor->stride(0), tensor->scalar_type() == ScalarType::Long};
}

struct Arguments {
  const Tensor &query, &key, &value;
  const MaybeTensor &mask, &query_offset, &starts_q, &starts_k, &seed;
  double scale, softcap;
  int64_t window_left, window_right, offset;
  double dropout_p;
  int64_t longest_query, longest_key;
};

Attention attention_of(const Arguments& given) {
  Attention call{};
  call.dtype = dtype_of(given.query);
  STD_TORCH_CHECK(call.dtype != Dtype::float64, "fastdl: the CUDA kernels take float32, float16 and bfloat16");
  call.samples = given.query.size(0);
  call.heads = given.query.size(1);
  call.key_heads = given.key.size(1);
  call.length = given.query.size(2);
  call.keys = given.key.size(2);
  constexpr int64_t longest = std::numeric_limits<int32_t>::max() - 256;  // the last block's end must fit
  STD_TORCH_CHECK(call.length <= longest && call.keys <= longest, "attention: the CUDA kernels take lengths up to ", longest);
  call.features = int(given.query.size(3));
  call.value_features = int(given.value.size(3));
  call.query = operand_of(given.query);
  call.key = operand_of(given.key);
  call.value = operand_of(given.value);
  call.scale = float(given.scale);
  call.softcap = float(given.softcap);
  call.window_left = limited_position(given.window_left);
  call.window_right = limited_position(given.window_right);
  call.offset = limited_position(given.offset);
  if (given.mask) {
    call.mask = operand_of(*given.mask);
    if (given.mask->size(3) == 1) call.mask.column = 0;
    for (int i = 0; i < 4; ++i) call.mask_sizes[i] = given.mask->size(i);
    const ScalarType type = given.mask->scalar_type();
    call.mask_type = type == ScalarType::Bool            ? AttentionMask::boolean
                     : type == given.query.scalar_type() ? AttentionMask::as_query
                                                         : AttentionMask::float32;
  }
  const bool in_sequences = given.starts_q && given.starts_k;
  call.query_offset = integers_of(given.query_offset);
  if (in_sequences) {
    call.starts_q = integers_of(given.starts_q);
    call.starts_k = integers_of(given.starts_k);
  }
  call.sequences = in_sequences ? given.starts_q->size(0) - 1 : call.samples;
  call.longest_query = in_sequences ? std::min(given.longest_query, call.length) : call.length;
  call.longest_key = in_sequences ? std::min(given.longest_key, call.keys) : call.keys;
  if (given.seed && given.dropout_p > 0) {
    call.dropped = int64_t(std::nearbyint(given.dropout_p * 65536));
    const auto* seed = static_cast<const int64_t*>(given.seed->const_data_ptr());
    if (is_on_host(*given.seed)) call.seed = uint64_t(*seed);
    else call.seed_on_device = seed;
  }
  return call;
}

// Freed when the call returns: torch gives it only to work that the same stream does later.
Tensor make_workspace(size_t bytes, const Tensor& like) { return empty_strided({int64_t(bytes)}, {1}, ScalarType::Byte, like); }

std::tuple<Tensor, Tensor> forward(const Tensor& query, const Tensor& key, const Tensor& value, const MaybeTensor& mask,
                                   const MaybeTensor& query_offset, const MaybeTensor& starts_q, const MaybeTensor& starts_k,
                                   const MaybeTensor& seed, double scale, double softcap, int64_t window_left, int64_t window_right,
                                   int64_t offset, double dropout_p, int64_t longest_query, int64_t longest_key) {
  const CurrentDevice place(query);
  const Attention call = attention_of({query, key, value, mask, query_offset, starts_q, starts_k, seed, scale, softcap, window_left,
                                       window_right, offset, dropout_p, longest_query, longest_key});
  const Shape sizes{call.samples, call.heads, call.length, call.value_features}, rows{call.samples, call.heads, call.length};
  Tensor output = empty_strided(sizes, strides_with_heads(query, sizes), query.scalar_type(), query);
  Tensor log_sum = empty_strided(rows, contiguous_strides(rows), ScalarType::Float, query);
  if (starts_q) {  // some queries may be in no sequence
    torch::stable::zero_(output);
    torch::stable::fill_(log_sum, -std::numeric_limits<double>::infinity());
  }
  if (log_sum.numel()) {
    const Tensor workspace = make_workspace(attention_forward_workspace(call), query);
    check(attention_forward(call, operand_of(output), row_numbers_of(log_sum), address(workspace), place.stream),
          "attention's forward");
  }
  return {output, log_sum};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> backward(const Tensor& grad_output, const MaybeTensor& grad_log_sum, const Tensor& query,
                                                    const Tensor& key, const Tensor& value, const MaybeTensor& mask,
                                                    const MaybeTensor& query_offset, const MaybeTensor& starts_q,
                                                    const MaybeTensor& starts_k, const MaybeTensor& seed, const Tensor& output,
                                                    const Tensor& log_sum, double scale, double softcap, int64_t window_left,
                                                    int64_t window_right, int64_t offset, double dropout_p, int64_t longest_query,
                                                    int64_t longest_key, const std::vector<bool>& needs) {
  const CurrentDevice place(query);
  const Attention call = attention_of({query, key, value, mask, query_offset, starts_q, starts_k, seed, scale, softcap, window_left,
                                       window_right, offset, dropout_p, longest_query, longest_key});
  AttentionGradients gradients;
  gradients.grad_output = operand_of(grad_output);
  gradients.output = operand_of(output);
  gradients.log_sum = row_numbers_of(log_sum);
  if (grad_log_sum) gradients.grad_log_sum = row_numbers_of(*grad_log_sum);

  auto [grad_query, grad_key, grad_value] = make_gradients(query, key, value, needs, [&](const Shape& sizes, const Shape& strides) {
    return empty_strided(sizes, strides, query.scalar_type(), query);
  });
  Tensor grad_mask;
  const bool by_mask = needs[3] && mask && call.mask_type != AttentionMask::boolean;
  if (by_mask) grad_mask = empty_strided(sizes_of(*mask), contiguous_strides(sizes_of(*mask)), mask->scalar_type(), query);
  const bool computed = call.samples * call.heads * call.length * call.keys > 0;
  Tensor* const results[4] = {&grad_query, &grad_key, &grad_value, &grad_mask};
  AttentionTensor* const operands[4] = {&gradients.query, &gradients.key, &gradients.value, &gradients.mask};
  bool wanted = false;
  for (int i = 0; i < 4; ++i) {
    if (!(i < 3 ? needs[i] : by_mask)) continue;
    // What is in no sequence has no block.
    if (!computed || (starts_q && i < 3)) torch::stable::zero_(*results[i]);
    *operands[i] = operand_of(*results[i]);
    wanted = true;
  }
  if (computed && wanted) {
    const Tensor workspace = make_workspace(attention_backward_workspace(call, gradients), query);
    check(attention_backward(call, gradients, address(workspace), place.stream), "attention's backward");
  }
  return {grad_query, grad_key, grad_value, grad_mask};
}

}  // namespace
}  // namespace attention_ops
}  // namespace fastdl::cuda

STABLE_TORCH_LIBRARY_FRAGMENT(fastdl_cuda, library) {
  library.def(fastdl::attention_forward_schema);
  library.def(fastdl::attention_backward_schema);
}

STABLE_TORCH_LIBRARY_IMPL(fastdl_cuda, CUDA, library) {
  library.impl("attention_forward", TORCH_BOX(&fastdl::cuda::attention_ops::forward));
  library.impl("attention_backward", TORCH_BOX(&fastdl::cuda::attention_ops::backward));
}
