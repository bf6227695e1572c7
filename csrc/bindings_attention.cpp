// Attention on the CPU as ops of torch, in the LibTorch stable ABI: reads the arguments where they lie, whatever their strides, and
// allocates the results in the layout that fastdl.ops.layout.empty_with_heads tells.
#include <algorithm>
#include <cmath>
#include <limits>
#include <tuple>

#include "attention_tensors.h"
#include "cpu/attention.h"
#include "cpu_tensors.h"

namespace fastdl {
namespace {

Operand4 operand_of(const Tensor& tensor) {
  const auto strides = tensor.strides();
  const auto sizes = tensor.sizes();
  const int64_t steps[4] = {sizes[0] == 1 ? 0 : strides[0], sizes[1] == 1 ? 0 : strides[1], strides[2], strides[3]};
  return {const_cast<void*>(tensor.const_data_ptr()), steps[0], steps[1], steps[2], steps[3]};
}

RowNumbers row_numbers(const Tensor& tensor) {
  const auto strides = tensor.strides();
  return {const_cast<void*>(tensor.const_data_ptr()), strides[0], strides[1], strides[2]};
}

int64_t count_of(const Shape& sizes) {
  int64_t count = 1;
  for (int64_t size : sizes) count *= size;
  return count;
}

Tensor make_contiguous(const Shape& sizes, ScalarType dtype, const Tensor& like) {
  const Shape strides = contiguous_strides(sizes);
  return dtype == like.scalar_type() ? make(sizes, strides, like, count_of(sizes)) : empty_strided(sizes, strides, dtype, like);
}

void clear(Tensor& tensor) { torch::stable::zero_(tensor); }

std::vector<int64_t> integers_of(const Tensor& tensor) {
  const int64_t n = tensor.size(0), stride = tensor.stride(0);
  std::vector<int64_t> values(n);
  if (tensor.scalar_type() == ScalarType::Int) {
    const int32_t* from = static_cast<const int32_t*>(tensor.const_data_ptr());
    for (int64_t i = 0; i < n; ++i) values[i] = from[i * stride];
  } else {
    const int64_t* from = static_cast<const int64_t*>(tensor.const_data_ptr());
    for (int64_t i = 0; i < n; ++i) values[i] = from[i * stride];
  }
  return values;
}

// The starts are data, which torch's other checks do not see, and the kernels would follow them anywhere.
std::vector<int64_t> starts_of(const Tensor& tensor, int64_t length, const char* name) {
  const std::vector<int64_t> starts = integers_of(tensor);
  bool rising = starts.front() >= 0 && starts.back() <= length;
  for (size_t i = 1; i < starts.size(); ++i) rising = rising && starts[i - 1] <= starts[i];
  STD_TORCH_CHECK(rising, "attention: ", name, " must rise from 0 to at most the length of what it divides, ", length);
  return starts;
}

struct Arguments {
  const Tensor &query, &key, &value;
  const MaybeTensor &mask, &query_offset, &starts_q, &starts_k, &seed;
  double scale, softcap;
  int64_t left, right, offset;
  double dropout_p;
};

Attention attention_of(const Arguments& given) {
  Attention call;
  call.dtype = dtype_of(given.query);
  call.samples = given.query.size(0);
  call.heads = given.query.size(1);
  call.key_heads = given.key.size(1);
  call.length = given.query.size(2);
  call.keys = given.key.size(2);
  call.features = given.query.size(3);
  call.value_features = given.value.size(3);
  call.query = operand_of(given.query);
  call.key = operand_of(given.key);
  call.value = operand_of(given.value);
  call.scale = given.scale;
  call.softcap = given.softcap;
  call.window_left = limited_position(given.left);
  call.window_right = limited_position(given.right);
  if (given.mask) {
    call.mask = operand_of(*given.mask);
    int64_t* steps[4] = {&call.mask.sample, &call.mask.head, &call.mask.row, &call.mask.column};
    for (int i = 0; i < 4; ++i) {
      call.mask_sizes[i] = given.mask->size(i);
      if (call.mask_sizes[i] == 1) *steps[i] = 0;
    }
    const ScalarType type = given.mask->scalar_type();
    call.mask_type = type == ScalarType::Bool            ? MaskType::boolean
                     : type == given.query.scalar_type() ? MaskType::as_query
                                                         : MaskType::float32;
  }
  if (given.starts_q && given.starts_k) {
    const std::vector<int64_t> q = starts_of(*given.starts_q, call.length, "cu_seqlens_q");
    const std::vector<int64_t> k = starts_of(*given.starts_k, call.keys, "cu_seqlens_k");
    for (size_t b = 0; b + 1 < q.size(); ++b)
      call.sequences.push_back({0, q[b], q[b + 1] - q[b], k[b], k[b + 1] - k[b], limited_position(given.offset)});
  } else {
    std::vector<int64_t> offsets(call.samples, 0);
    if (given.query_offset) offsets = integers_of(*given.query_offset);
    for (int64_t n = 0; n < call.samples; ++n)
      call.sequences.push_back({n, 0, call.length, 0, call.keys, limited_position(given.offset) + limited_position(offsets[n])});
  }
  if (given.seed && given.dropout_p > 0) {
    call.seed = uint64_t(*static_cast<const int64_t*>(given.seed->const_data_ptr()));
    call.dropped = int32_t(std::nearbyint(given.dropout_p * 65536));
  }
  return call;
}

std::tuple<Tensor, Tensor> attention_forward_op(const Tensor& query, const Tensor& key, const Tensor& value,
                                                const MaybeTensor& mask, const MaybeTensor& query_offset,
                                                const MaybeTensor& starts_q, const MaybeTensor& starts_k, const MaybeTensor& seed,
                                                double scale, double softcap, int64_t window_left, int64_t window_right,
                                                int64_t offset, double dropout_p, int64_t, int64_t) {
  const Attention call = attention_of({query, key, value, mask, query_offset, starts_q, starts_k, seed, scale, softcap, window_left,
                                       window_right, offset, dropout_p});
  const Shape sizes{call.samples, call.heads, call.length, call.value_features};
  Tensor output = make(sizes, strides_with_heads(query, sizes), query, count_of(sizes));
  const ScalarType wide = call.dtype == Dtype::float64 ? ScalarType::Double : ScalarType::Float;
  Tensor log_sum = make_contiguous({call.samples, call.heads, call.length}, wide, query);
  if (starts_q) {  // some queries may be in no sequence
    clear(output);
    torch::stable::fill_(log_sum, -std::numeric_limits<double>::infinity());
  }
  if (log_sum.numel()) attention_forward(call, operand_of(output), row_numbers(log_sum));
  return {output, log_sum};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> attention_backward_op(
    const Tensor& grad_output, const MaybeTensor& grad_log_sum, const Tensor& query, const Tensor& key, const Tensor& value,
    const MaybeTensor& mask, const MaybeTensor& query_offset, const MaybeTensor& starts_q, const MaybeTensor& starts_k,
    const MaybeTensor& seed, const Tensor& output, const Tensor& log_sum, double scale, double softcap, int64_t window_left,
    int64_t window_right, int64_t offset, double dropout_p, int64_t, int64_t, const std::vector<bool>& needs) {
  const Attention call = attention_of({query, key, value, mask, query_offset, starts_q, starts_k, seed, scale, softcap, window_left,
                                       window_right, offset, dropout_p});
  AttentionGradients gradients;
  gradients.grad_output = operand_of(grad_output);
  gradients.output = operand_of(output);
  gradients.log_sum = row_numbers(log_sum);
  if (grad_log_sum) gradients.grad_log_sum = row_numbers(*grad_log_sum);

  auto [grad_query, grad_key, grad_value] = make_gradients(query, key, value, needs, [&](const Shape& sizes, const Shape& strides) {
    return make(sizes, strides, query, count_of(sizes));
  });
  Tensor grad_mask;
  const bool by_mask = needs[3] && mask && call.mask_type != MaskType::boolean;
  if (by_mask) grad_mask = make_contiguous(sizes_of(*mask), mask->scalar_type(), query);
  const bool computed = call.samples * call.heads * call.length * call.keys > 0;
  Tensor* const results[4] = {&grad_query, &grad_key, &grad_value, &grad_mask};
  Operand4* const operands[4] = {&gradients.query, &gradients.key, &gradients.value, &gradients.mask};
  for (int i = 0; i < 4; ++i) {
    if (!(i < 3 ? needs[i] : by_mask)) continue;
    if (!computed || (starts_q && i < 3)) clear(*results[i]);
    *operands[i] = operand_of(*results[i]);
  }
  if (computed) attention_backward(call, gradients);
  return {grad_query, grad_key, grad_value, grad_mask};
}

}  // namespace
}  // namespace fastdl

STABLE_TORCH_LIBRARY_FRAGMENT(fastdl_cpu, library) {
  library.def(fastdl::attention_forward_schema);
  library.def(fastdl::attention_backward_schema);
}

STABLE_TORCH_LIBRARY_IMPL(fastdl_cpu, CPU, library) {
  library.impl("attention_forward", TORCH_BOX(&fastdl::attention_forward_op));
  library.impl("attention_backward", TORCH_BOX(&fastdl::attention_backward_op));
}
