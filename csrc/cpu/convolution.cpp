#include "convolution.h"

#include "convolution_gather.h"

namespace fastdl {
namespace {

// Of one dimension: which of the kernel's places reach the input positions first + stride g, and from which output position.
struct Reach {
  int64_t place, offset;
};
std::vector<Reach> reaches(const Convolution& c, int d, int64_t first) {
  std::vector<Reach> found;
  for (int64_t i = 0; i < c.kernel[d]; ++i) {
    const int64_t distance = first + c.padding[d] - i * c.dilation[d];
    if (distance % c.stride[d] == 0) found.push_back({i, distance / c.stride[d]});
  }
  return found;
}

void merge_moments(const Gather& gather, double* result) {
  const int64_t columns = gather.columns;
  std::copy_n(gather.moments, 2 * columns, result);
  int64_t count = gather.positions_of(0);
  for (int64_t task = 1; task < gather.tasks(); ++task) {
    const int64_t more = gather.positions_of(task);
    const double share = double(more) / double(count + more), *means = gather.moments + task * 2 * columns;
    for (int64_t c = 0; c < columns; ++c) {
      const double distance = means[c] - result[c];
      result[c] += distance * share;
      result[columns + c] += means[columns + c] + distance * distance * double(count) * share;
    }
    count += more;
  }
  for (int64_t c = 0; c < columns; ++c) result[columns + c] = std::max(result[columns + c] / double(count), 0.0);
}

// A 1x1 convolution that passes no position over, with every position a sample of its own: a tile's rows are then one behind the
// other in memory, where they would be as far apart as samples are.
Convolution flattened(const Convolution& given) {
  Convolution c = given;
  for (int d = 0; d < 3; ++d)
    if (c.kernel[d] != 1 || c.stride[d] != 1 || c.padding[d] != 0) return c;
  c.samples *= c.in_positions();
  for (int d = 0; d < 3; ++d) c.in[d] = c.out[d] = 1;
  return c;
}

Gather forward_gather(const Convolution& c, const float* input, const float* bias, float* output) {
  Gather gather{};
  gather.samples = c.samples;
  gather.source = input;
  gather.depth = c.in_channels;
  gather.result = output;
  gather.columns = c.out_channels;
  for (int d = 0; d < 3; ++d) {
    gather.source_size[d] = c.in[d];
    gather.result_size[d] = gather.grid[d] = c.out[d];
    gather.each[d] = 1;
    gather.step[d] = c.stride[d];
  }
  gather.taps = convolution_taps(c);
  gather.bias = bias;
  return gather;
}

}  // namespace

int64_t convolution_lanes() { return lanes<float>; }

bool convolution_is_fast() { return vector_bytes == 64; }

void convolution_forward(const Convolution& given, const float* input, const float* weight, const float* bias, float* output,
                         double* moments) {
  const Convolution c = flattened(given);
  Gather gather = forward_gather(c, input, bias, output);
  const Scratch<float> weights(c.taps() * c.in_channels * c.out_channels);
  pack_convolution_weight(c, weight, gather.taps, true, weights.data());
  gather.weights = weights.data();
  std::vector<double> parts(moments ? gather.tasks() * 2 * c.out_channels : 0);
  gather.moments = moments ? parts.data() : nullptr;
  run_gather(gather);
  if (moments) merge_moments(gather, moments);
}

void convolution_act_forward(const Convolution& given, const float* input, const float* weight, const float* bias,
                             const float* residual, Activation activation, double parameter, float* output) {
  const Convolution c = flattened(given);
  Gather gather = forward_gather(c, input, bias, output);
  const Scratch<float> weights(c.taps() * c.in_channels * c.out_channels);
  pack_convolution_weight(c, weight, gather.taps, true, weights.data());
  gather.weights = weights.data();
  const Finish finish{output, residual, float(parameter), finishes[int(activation)]};
  if (residual || activation != Activation::identity) gather.finish = &finish;
  run_gather(gather);
}

void convolution_data_gradient(const Convolution& given, const float* grad_output, const float* weight, float* grad_input) {
  const Convolution c = flattened(given);
  const Scratch<float> weights(c.taps() * c.in_channels * c.out_channels);
  const int64_t* at = c.weight_strides + 2;
  // Input positions that are a stride apart take the same taps.
  for (int64_t i = 0; i < std::min(c.stride[0], c.in[0]); ++i)
    for (int64_t j = 0; j < std::min(c.stride[1], c.in[1]); ++j)
      for (int64_t k = 0; k < std::min(c.stride[2], c.in[2]); ++k) {
        Gather gather{};
        gather.samples = c.samples;
        gather.source = grad_output;
        gather.depth = c.out_channels;
        gather.result = grad_input;
        gather.columns = c.in_channels;
        const int64_t first[3] = {i, j, k};
        for (int d = 0; d < 3; ++d) {
          gather.source_size[d] = c.out[d];
          gather.result_size[d] = c.in[d];
          gather.first[d] = first[d];
          gather.each[d] = c.stride[d];
          gather.grid[d] = (c.in[d] - first[d] + c.stride[d] - 1) / c.stride[d];
          gather.step[d] = 1;
        }
        for (const Reach& a : reaches(c, 0, i))
          for (const Reach& b : reaches(c, 1, j))
            for (const Reach& e : reaches(c, 2, k))
              gather.taps.push_back({{a.offset, b.offset, e.offset}, a.place * at[0] + b.place * at[1] + e.place * at[2]});
        pack_convolution_weight(c, weight, gather.taps, false, weights.data());
        gather.weights = weights.data();
        run_gather(gather);
      }
}

}  // namespace fastdl
