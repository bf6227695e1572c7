// The few types that every backend's kernels share, free of torch and of any device: what a tensor holds, how it lies in memory,
// and the names of the activations.
#pragma once

#include <cstdint>

namespace fastdl {

enum class Dtype { float32, float64, bfloat16, float16 };

// In values. One of channel and position is 1: positions are contiguous (NCHW) or channels are (channels last). A single position
// is channels last, with the sample's stride for its own.
struct Strides {
  int64_t sample, channel, position;
};

enum class Activation { identity, relu, leaky_relu, sigmoid, tanh, silu, gelu, gelu_tanh, elu, hardswish, mish, softplus };
inline constexpr int activation_count = 12;
inline constexpr const char* activation_names[activation_count] = {
    "identity", "relu", "leaky_relu", "sigmoid", "tanh", "silu", "gelu", "gelu_tanh", "elu", "hardswish", "mish", "softplus"};

}  // namespace fastdl
