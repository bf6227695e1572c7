// The convolutions that apply a norm and an activation to their input while they load it: what a kernel is asked to do. Depthwise
// (one input channel for each output channel) and pointwise (1x1) convolutions, of dense channels-last tensors. Host side, free of
// torch and of CUDA.
//
// Backward by input leaves what the norm sends on in two steps where statistics depend on the input: the gradient of the affine
// map's output with its sums by channel, then, once these are known, the gradient of the input.
#pragma once

#include "convolution_shape.h"
#include "norm_call.h"

namespace fastdl::cuda {

// u = ((x - high) - low) scale + bias: the mean in two floats, since one of 1e4 is off by 5e-4.
struct alignas(16) ChannelCoefficients {
  float high, low, scale, bias;
};

// What the input's gradient takes from the means over a slab: gx = gu scale + (x - mean) by_input + constant.
struct alignas(8) ChannelFeedback {
  float by_input, constant;
};

// The norm and the activation as kernels apply them. Null coefficients: there is no norm.
struct Prologue {
  const ChannelCoefficients* coefficients;  // (samples, channels), or (channels) where all samples share them
  bool by_sample;
  bool constant;  // statistics are constants and send nothing back
  Activation activation;
  float parameter;
  bool activation_first;
};

// Rows (positions) as blocks share them out: `segments` runs of equally many rows, those of a sample where partial sums must be a
// sample's; each run cut into blocks.
struct RowShare {
  int64_t segments, segment_rows, rows_per_block, blocks_per_segment;

  int64_t blocks() const { return segments * blocks_per_segment; }
};

// What every kernel is handed; which of the pointers are there depends on the kernel.
struct ConvolutionCall {
  ConvolutionShape shape;
  Prologue prologue;
  Dtype dtype;
  bool vector_in, vector_out;  // rows of input and of output channels are read and written 16 bytes at a time
  const void *input, *weight, *gradient;
  Parameter bias;
  void* output;                     // forward: the output; backward: the input's gradient, or what comes before it
  bool complete;                    // backward: output is the input's gradient, nothing is added to it later
  PartialMoments* partial_moments;  // (blocks, out channels); null if not asked for
  ChannelSums* channel_sums;        // (blocks, channels): of gu, and of gu (x - mean); null if not needed
  const ChannelFeedback* feedback;  // like the coefficients
  float* weight_sums;               // (ranks, elements of the weight)
  float* bias_sums;                 // (ranks, out channels)
};

// -- depthwise -------------------------------------------------------------------------------------------------------------------

// Along one dimension, which input rows a tile of outputs needs and where they stand. Slot `position_step p + tap_step k` is the
// input row of output p at tap k. Rows lie as in the input, or, where steps leave gaps between them, tap by tap.
struct SlotLine {
  int outputs, slots;  // of a tile
  int position_step, tap_step;
  bool by_tap;
};

struct DepthwiseTiles {
  SlotLine down, across;
  int tiles_down, tiles_across;
  int64_t tiles, tiles_per_block, blocks;  // of all samples
  int vector_bits;                         // 2^vector_bits vectors of channels a block
  int64_t column_blocks;
  size_t shared_bytes;
};

DepthwiseTiles depthwise_forward_tiles(const ConvolutionCall& call, const Target& target);
DepthwiseTiles depthwise_weight_tiles(const ConvolutionCall& call, const Target& target);
RowShare depthwise_input_share(const ConvolutionCall& call, const Target& target);

int launch_depthwise_forward(const ConvolutionCall& call, const DepthwiseTiles& tiles, void* stream);
int launch_depthwise_weight(const ConvolutionCall& call, const DepthwiseTiles& tiles, void* stream);
int launch_depthwise_input(const ConvolutionCall& call, const RowShare& share, void* stream);

// -- pointwise -------------------------------------------------------------------------------------------------------------------

RowShare pointwise_forward_share(const ConvolutionCall& call, const Target& target);
RowShare pointwise_weight_share(const ConvolutionCall& call, const Target& target);
RowShare pointwise_input_share(const ConvolutionCall& call, const Target& target);

int launch_pointwise_forward(const ConvolutionCall& call, const RowShare& share, void* stream);
int launch_pointwise_weight(const ConvolutionCall& call, const RowShare& share, void* stream);
int launch_pointwise_input(const ConvolutionCall& call, const RowShare& share, void* stream);

// -- around them -----------------------------------------------------------------------------------------------------------------

// The slabs of a norm's statistics: `groups` of channels, of each sample or of all.
struct Slabs {
  int64_t samples, channels, groups;  // samples: 1 where statistics are by channel
  double count;                       // values a slab
};

// statistics: (2, slabs), means and biased variances.
int launch_channel_coefficients(const Slabs& slabs, const double* statistics, const Parameter& weight, const Parameter& bias,
                                float eps, ChannelCoefficients* coefficients, void* stream);

// The input's gradient from what launch_*_input left in `output`, in place.
int launch_convolution_feedback(const ConvolutionCall& call, void* stream);

// Totals (slabs.samples, channels) of the blocks' channel sums.
int launch_channel_totals(const ConvolutionCall& call, const Slabs& slabs, const RowShare& share, PartialSums* totals,
                          const double* statistics, float eps, void* stream);
int launch_channel_feedback(const Slabs& slabs, const PartialSums* totals, const double* statistics, const Parameter& weight,
                            float eps, ChannelFeedback* feedback, void* stream);
int launch_norm_parameter_gradients(const Slabs& slabs, const PartialSums* totals, const ParameterGradient& weight,
                                    const ParameterGradient& bias, void* stream);

// gradient[i] = the sum over ranks of sums[rank][i].
int launch_sum_of_ranks(const float* sums, int64_t ranks, const ParameterGradient& gradient, int64_t count, void* stream);

}  // namespace fastdl::cuda
