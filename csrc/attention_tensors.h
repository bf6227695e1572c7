// What the bindings of attention share on every device: the schemas, and in what layout results are allocated.
// fastdl.ops.layout says the same in Python, for tracing. Included by bindings_attention.cpp and cuda/bindings_attention.cpp alone.
#pragma once

#include <algorithm>
#include <array>

#include "tensors.h"

namespace fastdl {

inline constexpr const char* attention_forward_schema =
    "attention_forward(Tensor query, Tensor key, Tensor value, Tensor? attn_mask, Tensor? query_offset, Tensor? cu_seqlens_q, "
    "Tensor? cu_seqlens_k, Tensor? seed, float scale, float softcap, int window_left, int window_right, int offset, "
    "float dropout_p, int max_seqlen_q, int max_seqlen_k) -> (Tensor, Tensor)";
inline constexpr const char* attention_backward_schema =
    "attention_backward(Tensor grad_output, Tensor? grad_log_sum, Tensor query, Tensor key, Tensor value, Tensor? attn_mask, "
    "Tensor? query_offset, Tensor? cu_seqlens_q, Tensor? cu_seqlens_k, Tensor? seed, Tensor output, Tensor log_sum, float scale, "
    "float softcap, int window_left, int window_right, int offset, float dropout_p, int max_seqlen_q, int max_seqlen_k, "
    "bool[] needs) -> (Tensor, Tensor, Tensor, Tensor)";

// Positions and windows beyond this mean the same as this, and sums of them do not overflow.
inline int64_t limited_position(int64_t number) {
  constexpr int64_t far = int64_t(1) << 60;
  return std::clamp(number, -far, far);
}

inline Shape sizes_of(const Tensor& tensor) {
  const auto sizes = tensor.sizes();
  return Shape(sizes.begin(), sizes.end());
}

inline Shape contiguous_strides(const Shape& sizes) {
  Shape strides(sizes.size(), 1);
  for (size_t i = sizes.size() - 1; i > 0; --i) strides[i - 1] = strides[i] * std::max<int64_t>(sizes[i], 1);
  return strides;
}

// Of (N, H, length, features), with the heads inside of the length in memory where `like` has them so.
inline Shape strides_with_heads(const Tensor& like, const Shape& sizes) {
  if (!(like.size(1) > 1 && like.size(2) > 1 && like.stride(1) < like.stride(2))) return contiguous_strides(sizes);
  const auto size = [&](int i) { return std::max<int64_t>(sizes[i], 1); };
  return {size(1) * size(2) * size(3), size(3), size(1) * size(3), 1};
}

// Whether these are the three slices of one projection, (N, L, 3, H, E) in memory.
inline bool are_packed(const Tensor& query, const Tensor& key, const Tensor& value) {
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

// Uninitialised gradients of query, key and value, those that are needed. Of one projection's slices they are slices of one tensor
// again, which is then the projection's gradient as it stands. make(sizes, strides) allocates.
template <class Make>
std::array<Tensor, 3> make_gradients(const Tensor& query, const Tensor& key, const Tensor& value, const std::vector<bool>& needs,
                                     Make&& make) {
  std::array<Tensor, 3> gradients;
  const Tensor* given[3] = {&query, &key, &value};
  if (!(needs[0] && needs[1] && needs[2] && query.numel() > 0 && are_packed(query, key, value))) {
    for (int i = 0; i < 3; ++i)
      if (needs[i]) gradients[i] = make(sizes_of(*given[i]), strides_with_heads(*given[i], sizes_of(*given[i])));
    return gradients;
  }
  const Shape sizes = sizes_of(query), whole{sizes[0], sizes[2], 3, sizes[1], sizes[3]};
  const int64_t row = sizes[1] * sizes[3];
  const Shape strides{sizes[2] * 3 * row, sizes[3], 3 * row, 1};
  const Tensor projection = make(whole, contiguous_strides(whole));
  for (int i = 0; i < 3; ++i) {
    AtenTensorHandle handle;
    TORCH_ERROR_CODE_CHECK(aoti_torch__reinterpret_tensor(projection.get(), 4, sizes.data(), strides.data(), i * row, &handle));
    gradients[i] = Tensor(handle);
  }
  return gradients;
}

}  // namespace fastdl
