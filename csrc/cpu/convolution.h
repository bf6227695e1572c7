// Convolutions in float32 over channels-last activations, as products of matrices whose rows are gathered where they lie: no
// window is ever copied (Dukhan 2019, "The Indirect Convolution Algorithm", arXiv:1907.02129).
#pragma once

#include <cstdint>

#include "../types.h"

namespace fastdl {

// A convolution over up to three spatial dimensions; of those that a call lacks, the first ones have size 1.
struct Convolution {
  int64_t samples, in_channels, out_channels;
  int64_t in[3], out[3], kernel[3];
  int64_t stride[3], padding[3], dilation[3];
  int64_t weight_strides[5];  // of output channel, input channel and the three dimensions of the kernel

  int64_t in_positions() const { return in[0] * in[1] * in[2]; }
  int64_t out_positions() const { return out[0] * out[1] * out[2]; }
  int64_t taps() const { return kernel[0] * kernel[1] * kernel[2]; }
};

// The channels in one of this build's vectors: both numbers of channels are multiples of it, as all that follows takes for granted.
int64_t convolution_lanes();
// Whether this build was measured as fast as oneDNN's convolutions, or faster (bench/results): with AVX-512.
bool convolution_is_fast();

// output (samples, *out, out_channels). moments: null, or mean and biased variance of each output channel, (2, out_channels).
void convolution_forward(const Convolution& convolution, const float* input, const float* weight, const float* bias, float* output,
                         double* moments);
// output = act(convolution + bias + residual); the residual, of the output's shape and as dense, may be null.
void convolution_act_forward(const Convolution& convolution, const float* input, const float* weight, const float* bias,
                             const float* residual, Activation activation, double parameter, float* output);
// grad_input (samples, *in, in_channels)
void convolution_data_gradient(const Convolution& convolution, const float* grad_output, const float* weight, float* grad_input);
// grad_weight: in the weight's strides.
void convolution_weight_gradient(const Convolution& convolution, const float* grad_output, const float* input, float* grad_weight);

}  // namespace fastdl
