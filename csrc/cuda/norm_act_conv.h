// conv(act(norm(x))) on a GPU, where the activated tensor never touches memory: host side, functions that queue the work on a
// stream. Free of torch and of CUDA.
#pragma once

#include "convolution_shape.h"
#include "norm.h"

namespace fastdl::cuda {

inline constexpr int64_t norm_by_batch = 0, norm_by_nothing = -1;  // num_groups where there are no groups

// The sizes of a call as torch has them; groups of the convolution.
struct ConvolutionSizes {
  int64_t samples, channels, height, width;
  int64_t out_channels, weight_channels, kernel_height, kernel_width;  // of the weight
  int64_t stride_height, stride_width, padding_height, padding_width, dilation_height, dilation_width, groups;
};

// Whether there are kernels for these sizes, given that the input is dense and its channels innermost.
bool is_convolution_served(const ConvolutionSizes& sizes);
ConvolutionShape convolution_shape(const ConvolutionSizes& sizes);

struct NormActConv {
  ConvolutionShape shape;
  Dtype dtype;  // of input, weight and output: float32, float16 or bfloat16
  const void *input, *weight;
  Parameter norm_weight, norm_bias, bias;
  int64_t num_groups;        // or norm_by_batch, norm_by_nothing
  Parameter mean, variance;  // by channel, where they are given
  bool constant;             // what is given are constants (running statistics), else it is the input's own
  double eps, parameter;     // parameter: the activation's
  Activation activation;
  bool activation_first;
  bool collect;  // statistics of the output
};

struct NormActConvGradients {
  const void* output;                                      // given, dense and channels last
  void* input;                                             // wanted where not null, likewise
  ParameterGradient norm_weight, norm_bias, weight, bias;  // likewise, contiguous
};

// Queue the work on `stream`, a cudaStream_t. Return a CUDA error, 0 for none. Results lie at multiples of 16 bytes. statistics:
// what the norm's were, flat (2 C, 2 N G or nothing), then with `collect` the mean and biased variance of each output channel, of
// the output as it was rounded. The workspace is device memory that a call needs while it runs.
size_t norm_act_conv_forward_workspace(const NormActConv& call, const Target& target);
int norm_act_conv_forward(const NormActConv& call, void* output, double* statistics, void* workspace, const Target& target,
                          void* stream);
size_t norm_act_conv_backward_workspace(const NormActConv& call, const NormActConvGradients& gradients, const Target& target);
int norm_act_conv_backward(const NormActConv& call, const double* statistics, const NormActConvGradients& gradients,
                           void* workspace, const Target& target, void* stream);

// How many values of `statistics` are the norm's.
int64_t norm_statistics_count(const NormActConv& call);

}  // namespace fastdl::cuda
