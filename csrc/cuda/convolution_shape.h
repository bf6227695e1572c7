// The sizes of a convolution, free of torch and of CUDA.
#pragma once

#include <cstdint>

namespace fastdl::cuda {

// Tensors are (samples, height, width, channels), without gaps.
struct ConvolutionShape {
  int64_t samples, channels, height, width;
  int64_t out_channels, out_height, out_width;
  int kernel_height, kernel_width;
  int stride_height, stride_width, padding_height, padding_width, dilation_height, dilation_width;
  bool depthwise;  // else pointwise

  int64_t rows() const { return samples * height * width; }
  int64_t out_rows() const { return samples * out_height * out_width; }
  bool is_strided() const { return stride_height != 1 || stride_width != 1; }
  int taps() const { return kernel_height * kernel_width; }
};

}  // namespace fastdl::cuda
