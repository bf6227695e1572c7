// What the bindings of dropout share on every device: the schema, and how a tensor is seen as rows, or as an image whose channels
// are innermost. Included by bindings_dropout.cpp and cuda/bindings_dropout.cpp alone.
#pragma once

#include <cmath>

#include "tensors.h"

namespace fastdl {

inline constexpr const char* dropout_forward_schema =
    "dropout_forward(Tensor input, Tensor? residual, Tensor seed, float dropout_p) -> Tensor";

// A dense tensor is samples x lines x width x channels in memory (see cpu/dropout.h).
struct DropoutGeometry {
  Shape sizes, strides;  // of the output, and of all that the kernels read
  int64_t samples = 1, channels = 1, lines = 1, width = 1, count = 1;

  explicit DropoutGeometry(const Tensor& input) {
    const auto given = input.sizes();
    sizes.assign(given.begin(), given.end());
    strides.assign(sizes.size(), 1);
    for (int64_t size : sizes) count *= size;
    if (sizes.empty()) return;
    width = sizes.back();
    if (sizes.size() > 2) {
      const Geometry image(input);
      if (image.channels_last) {
        strides = image.dense;
        samples = image.samples;
        channels = image.channels;
        for (size_t i = 2; i + 1 < sizes.size(); ++i) lines *= sizes[i];
        return;
      }
    }
    for (size_t i = sizes.size() - 1; i > 0; --i) {
      strides[i - 1] = strides[i] * (sizes[i] > 0 ? sizes[i] : 1);
      samples *= sizes[i - 1];
    }
  }

  // Whether the kernels can read the tensor where it is. Dimensions of one element may have any stride.
  bool in_place(const Tensor& tensor) const {
    const auto given = tensor.strides();
    for (size_t i = 0; i < sizes.size(); ++i)
      if (sizes[i] != 1 && given[i] != strides[i]) return false;
    return true;
  }
};

// The levels of 65536 that drop, as fastdl/reference/dropout.py rounds them: to the nearest, halves to even.
inline int32_t dropped_levels(double dropout_p) { return int32_t(std::nearbyint(dropout_p * 65536.0)); }

}  // namespace fastdl
