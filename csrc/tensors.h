// What the bindings of every device share: torch's tensors in the LibTorch stable ABI, and the geometry of a call, by which a
// tensor is read in place or copied first. Included by bindings.cpp and cuda/bindings.cpp alone; the kernels see raw pointers.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <optional>
#include <string>
#include <vector>

#include "types.h"

namespace fastdl {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using MaybeTensor = std::optional<Tensor>;
using Shape = std::vector<int64_t>;

inline Dtype dtype_of(const Tensor& tensor) {
  switch (tensor.scalar_type()) {
    case ScalarType::Float: return Dtype::float32;
    case ScalarType::Double: return Dtype::float64;
    case ScalarType::BFloat16: return Dtype::bfloat16;
    case ScalarType::Half: return Dtype::float16;
    default: STD_TORCH_CHECK(false, "fastdl: a tensor must be float32, float64, bfloat16 or float16");
  }
  return Dtype::float32;
}

// An uninitialised tensor on the device of `like`.
inline Tensor empty_strided(const Shape& sizes, const Shape& strides, ScalarType dtype, const Tensor& like) {
  AtenTensorHandle handle;
  int32_t device_type, device_index;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(like.get(), &device_type));
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_index(like.get(), &device_index));
  const int32_t type = torch::stable::detail::to<int32_t>(torch::stable::detail::from(dtype));
  TORCH_ERROR_CODE_CHECK(
      aoti_torch_empty_strided(sizes.size(), sizes.data(), strides.data(), type, device_type, device_index, &handle));
  return Tensor(handle);
}

// Statistics are kept in double: a float32 mean of 1e4 is itself off by 5e-4.
inline Tensor empty_statistics(const Shape& sizes, const Tensor& like) {
  Shape strides(sizes.size(), 1);
  for (size_t i = sizes.size() - 1; i > 0; --i) strides[i - 1] = strides[i] * (sizes[i] > 0 ? sizes[i] : 1);
  return empty_strided(sizes, strides, ScalarType::Double, like);
}

inline Activation activation_named(const std::string& name) {
  for (int i = 0; i < activation_count; ++i)
    if (name == activation_names[i]) return Activation(i);
  STD_TORCH_CHECK(false, "fastdl: unknown activation ", name);
  return Activation::identity;
}

// The shape of a call, and the layout of its output: channels last if the input's channels are innermost in memory, else NCHW.
// fastdl.ops.layout.output_like says the same in Python, for tracing.
struct Geometry {
  Shape sizes, dense;
  int64_t samples, channels, positions = 1, count;
  bool channels_last = false;

  explicit Geometry(const Tensor& input) {
    const auto shape = input.sizes();
    sizes.assign(shape.begin(), shape.end());
    samples = sizes[0];
    channels = sizes[1];
    for (size_t i = 2; i < sizes.size(); ++i) positions *= sizes[i];
    count = samples * channels * positions;
    dense.resize(sizes.size());
    channels_last = sizes.size() > 2 && !input.is_contiguous() && has_inner_channels(input.strides());
    int64_t stride = channels_last ? channels : 1;
    for (size_t i = sizes.size() - 1; i >= 2; --i) {
      dense[i] = stride;
      stride *= sizes[i] > 0 ? sizes[i] : 1;
    }
    dense[1] = channels_last ? 1 : stride;
    dense[0] = channels_last ? stride : stride * (channels > 0 ? channels : 1);
  }

  // One position is both layouts; the kernels know it as channels last.
  bool rows() const { return channels_last || positions == 1; }

  // The tensor's strides as the kernels take them, if they can read it where it is.
  std::optional<Strides> in_place(const Tensor& tensor) const {
    const auto given = tensor.strides();
    int64_t position = 0, length = 1;
    for (size_t i = sizes.size() - 1; i >= 2; --i) {
      if (sizes[i] == 1) continue;
      if (length == 1) position = given[i];
      else if (given[i] != position * length) return std::nullopt;
      length *= sizes[i];
    }
    if (positions == 1) position = given[0];
    const bool fits = rows() ? given[1] == 1 || channels == 1 : position == 1;
    if (!fits) return std::nullopt;
    return Strides{given[0], rows() ? 1 : given[1], position};
  }

 private:
  template <class Given>
  bool has_inner_channels(const Given& strides) const {
    if (strides[1] != 1) return false;
    int64_t innermost = channels;
    for (size_t step = sizes.size() - 1; step >= 1; --step) {
      const size_t i = step == 1 ? 0 : step;
      if (sizes[i] == 1) continue;
      if (strides[i] < innermost) return false;
      innermost = strides[i] * sizes[i];
    }
    return true;
  }
};

}  // namespace fastdl
