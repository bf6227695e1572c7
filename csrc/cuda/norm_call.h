// What the kernels of a normalisation are handed.
//
// Statistics are taken over slabs: the groups of a sample (group norm), or the channels (batch norm). A slab is shared out over
// `ranks` blocks, which each copy their part into shared memory once. With Step::all the ranks are one block, or a cluster that
// exchanges partial results, and each value is read and written once. Otherwise Step::gather leaves partial results in the
// workspace, a small kernel of merge.cu joins them, and Step::apply reads the values again.
#pragma once

#include "norm.h"

namespace fastdl::cuda {

enum class Step { all, gather, apply };

struct PartialMoments {
  double count, mean, squares;
};
struct PartialSums {
  double gradient, product;  // sum of gu and of gu xhat over a slab, weighted by channel where a slab has several
};
struct ChannelSums {
  float gradient, product;  // the same over some of one channel's values, without weight
};

struct Call {
  const void *input, *residual, *gradient;  // gradient: the output's, in backward
  void *output, *residual_gradient;         // output: forward's output, backward's gradient of the input
  Strides input_strides, residual_strides, gradient_strides, output_strides;
  Parameter weight, bias;
  Parameter mean, variance;  // by slab, where they are known
  float eps, parameter;
  Activation activation;
  bool activation_first;
  bool clustered;        // the ranks of a slab form a cluster
  bool constant;         // statistics are constants, and send no gradient back
  bool slab_is_channel;  // batch norm: one channel is one slab
  Step step;
  int ranks;            // blocks a slab
  int64_t first_block;  // of this launch; a grid holds 2^31 - 1 of them at most
  int64_t blocks;       // of all launches
  int64_t slabs, channels;
  double count;                                      // values a slab
  double* statistics;                                // (2, slabs), written where not null
  PartialMoments* partial_moments;                   // (ranks, slabs)
  PartialSums* partial_sums;                         // (ranks, slabs)
  const PartialSums* means;                          // (slabs): the means of w gu and w gu xhat; null is zero
  ChannelSums* channel_sums;                         // written where not null; see Strips and Rows
  ParameterGradient weight_gradient, bias_gradient;  // written here if one block or cluster holds a whole channel
};

// A slab as segments of contiguous positions: a group's channels, or a channel's samples. A segment is cut into pieces of
// `rounds` rounds of 2^lanes vectors, and 2^lanes neighbouring threads, a team, take one piece, an item, at a time.
struct Strips {
  int64_t slabs_a_sample;  // groups; or channels, where segments are samples
  int64_t segments, positions;
  bool segments_are_samples;
  int lanes, rounds;
  unsigned pieces;  // a segment
  int64_t items;    // a slab: segments x pieces
  int64_t items_per_rank;
  int turns;  // items that a team takes at most
  int slots;  // turns x rounds: the vectors a thread keeps of each tensor
  // ChannelSums are (samples, channels, pieces).
};

// Where a thread's pointer into one tensor goes from one row of its own to the next.
struct RowStep {
  int64_t advance, wrap;  // in values; wrap is added where the positions of a sample end
};

// A slab as rows of columns, of which a tile covers some whole groups, or a part of one. Rows are the positions of one sample
// (group norm), or those of all samples (batch norm, outer = 1).
struct Rows {
  int64_t outer, rows, positions;
  int64_t groups, group_channels;
  int64_t tiles;           // of columns
  int tile_groups, parts;  // a tile has tile_groups groups; or, where parts > 1, one in as many parts, each a rank
  int tile_columns;
  int vectors, row_lanes;  // threads of a row, and rows that are read at once
  int64_t rows_per_rank;
  int slots;                           // rows that a thread keeps of each tensor
  int scratch_bytes;                   // of shared memory, before what is kept
  int64_t sample_step, position_step;  // from a row to the next of the same thread
  RowStep input_step, residual_step, gradient_step, output_step;
  // ChannelSums are (rows' ranks, outer, channels).
};

struct Launch {
  Dtype dtype;
  bool vector;  // 16-byte accesses
  int64_t blocks;
  int threads, cluster;
  size_t shared_bytes;
  void* stream;
};

int launch_strips_forward(const Launch& launch, const Call& call, const Strips& strips);
int launch_strips_backward(const Launch& launch, const Call& call, const Strips& strips);
int launch_rows_forward(const Launch& launch, const Call& call, const Rows& rows);
int launch_rows_backward(const Launch& launch, const Call& call, const Rows& rows);

// Joins the ranks' moments into statistics.
int launch_merge_moments(const Call& call, void* stream);
// Copies given statistics, where there is nothing to normalise.
int launch_copy_statistics(const Parameter& mean, const Parameter& variance, double* statistics, int64_t channels, void* stream);
// Joins the ranks' sums into means (slabs), and into the parameters' gradients where a slab is a channel.
int launch_merge_sums(const Call& call, PartialSums* means, void* stream);
// Adds up channel sums (outer, channels, pieces) to the parameters' gradients.
int launch_parameter_gradients(const Call& call, int64_t outer, int64_t pieces, void* stream);

// Bytes of shared memory before what is kept, which are multiples of 16; vector is the number of values in one access.
size_t strips_scratch_bytes();
size_t rows_forward_scratch_bytes(const Rows& rows, int vector);
size_t rows_backward_scratch_bytes(const Rows& rows, int vector);

}  // namespace fastdl::cuda
