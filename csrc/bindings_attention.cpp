// Attention on the CPU as ops of torch, in the LibTorch stable ABI: reads the arguments where they lie, whatever their strides, and
// allocates the results in the layout that fastdl.ops.layout.empty_with_heads tells.
#include <algorithm>
#include <cmath>
#include <limits>
#include <tuple>

#include "cpu/attention.h"
#include "cpu_tensors.h"

namespace fastdl {
namespace {

// Positions and windows beyond this mean the same as this, and sums of them do not overflow.
constexpr int64_t far = int64_t(1) << 60;

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
  Shape strides(sizes.size(), 1);
  for (size_t i = sizes.size() - 1; i > 0; --i) strides[i - 1] = strides[i] * std::max<int64_t>(sizes[i], 1);
  return dtype == like.scalar_type() ? make(sizes, strides, like, count_of(sizes)) : empty_strided(sizes, strides, dtype, like);
}

// (N, H, length, features), with the heads inside of the length in memory where `like` has them so.
Tensor make_with_heads(const Tensor& like, const Shape& sizes) {
  if (!(like.size(1) > 1 && like.size(2) > 1 && like.stride(1) < like.stride(2)))
    return make_contiguous(sizes, like.scalar_type(), like);
  const int64_t heads = std::max<int64_t>(sizes[1], 1), length = std::max<int64_t>(sizes[2], 1),
                features = std::max<int64_t>(sizes[3], 1);
  return make(sizes, {length * heads * features, features, heads * features, 1}, like, count_of(sizes));
}

// Whether these are the three slices of one projection, (N, L, 3, H, E) in memory.
bool packed(const Tensor& query, const Tensor& key, const Tensor& value) {
  const auto sizes = query.sizes(), strides = query.strides();
  const int64_t row = sizes[1] * sizes[3], bytes = row * int64_t(query.element_size());
  for (const Tensor* other : {&key, &value})
    for (int i = 0; i < 4; ++i)
      if (other->size(i) != sizes[i] || (sizes[i] > 1 && other->stride(i) != strides[i])) return false;
  const int64_t expected[3] = {sizes[3], 3 * row, 1};
  for (int i = 1; i < 4; ++i)
    if (sizes[i] > 1 && strides[i] != expected[i - 1]) return false;
  const char* first = static_cast<const char*>(query.const_data_ptr());
  return key.const_data_ptr() == first + bytes && value.const_data_ptr() == first + 2 * bytes;
}

// One of three gradients that lie as the projection does, which is then its own gradient: nothing has to be put together.
Tensor slice_of(const Tensor& projection, int64_t which, const Shape& sizes) {
  const int64_t row = sizes[1] * sizes[3];
  const Shape strides{sizes[2] * 3 * row, sizes[3], 3 * row, 1};
  AtenTensorHandle handle;
  TORCH_ERROR_CODE_CHECK(aoti_torch__reinterpret_tensor(projection.get(), 4, sizes.data(), strides.data(), which * row, &handle));
  return Tensor(handle);
}

Shape sizes_of(const Tensor& tensor) {
  const auto sizes = tensor.sizes();
  return Shape(sizes.begin(), sizes.end());
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

int64_t limited(int64_t number) { return std::clamp(number, -far, far); }

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
  call.window_left = limited(given.left);
  call.window_right = limited(given.right);
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
      call.sequences.push_back({0, q[b], q[b + 1] - q[b], k[b], k[b + 1] - k[b], limited(given.offset)});
  } else {
    std::vector<int64_t> offsets(call.samples, 0);
    if (given.query_offset) offsets = integers_of(*given.query_offset);
    for (int64_t n = 0; n < call.samples; ++n)
      call.sequences.push_back({n, 0, call.length, 0, call.keys, limited(given.offset) + limited(offsets[n])});
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
  Tensor output = make_with_heads(query, {call.samples, call.heads, call.length, call.value_features});
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

  Tensor results[4];
  const Tensor* like[3] = {&query, &key, &value};
  Operand4* operands[4] = {&gradients.query, &gradients.key, &gradients.value, &gradients.mask};
  const Shape sizes = sizes_of(query);
  std::optional<Tensor> projection;
  if (needs[0] && needs[1] && needs[2] && query.numel() > 0 && packed(query, key, value))
    projection = make_contiguous({sizes[0], sizes[2], 3, sizes[1], sizes[3]}, query.scalar_type(), query);
  const bool computed = call.samples * call.heads * call.length * call.keys > 0;
  for (int i = 0; i < 4; ++i) {
    if (!needs[i] || (i == 3 && (!mask || call.mask_type == MaskType::boolean))) continue;
    if (i == 3) results[i] = make_contiguous(sizes_of(*mask), mask->scalar_type(), query);
    else if (projection) results[i] = slice_of(*projection, i, sizes);
    else results[i] = make_with_heads(*like[i], sizes_of(*like[i]));
    if (!computed || (starts_q && i < 3)) clear(results[i]);
    *operands[i] = operand_of(results[i]);
  }
  if (computed) attention_backward(call, gradients);
  return {results[0], results[1], results[2], results[3]};
}

}  // namespace
}  // namespace fastdl

STABLE_TORCH_LIBRARY_FRAGMENT(fastdl_cpu, library) {
  library.def(
      "attention_forward(Tensor query, Tensor key, Tensor value, Tensor? attn_mask, Tensor? query_offset, Tensor? cu_seqlens_q, "
      "Tensor? cu_seqlens_k, Tensor? seed, float scale, float softcap, int window_left, int window_right, int offset, "
      "float dropout_p, int max_seqlen_q, int max_seqlen_k) -> (Tensor, Tensor)");
  library.def(
      "attention_backward(Tensor grad_output, Tensor? grad_log_sum, Tensor query, Tensor key, Tensor value, Tensor? attn_mask, "
      "Tensor? query_offset, Tensor? cu_seqlens_q, Tensor? cu_seqlens_k, Tensor? seed, Tensor output, Tensor log_sum, float scale, "
      "float softcap, int window_left, int window_right, int offset, float dropout_p, int max_seqlen_q, int max_seqlen_k, "
      "bool[] needs) -> (Tensor, Tensor, Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(fastdl_cpu, CPU, library) {
  library.impl("attention_forward", TORCH_BOX(&fastdl::attention_forward_op));
  library.impl("attention_backward", TORCH_BOX(&fastdl::attention_backward_op));
}
