// The weight's gradient: for each tap, the product of the input's positions (transposed) and those of the output's gradient.
#include "convolution_pack.h"

namespace fastdl {
namespace {

class WeightGradient {
 public:
  WeightGradient(const Convolution& convolution, const float* gradient, const float* input)
      : c_(convolution),
        gradient_(gradient),
        input_(input),
        lines_(c_.samples * c_.out[0] * c_.out[1]),
        panels_((c_.out_channels + convolution_panel - 1) / convolution_panel),
        size_(c_.taps() * c_.in_channels * c_.out_channels),
        taps_(convolution_taps(c_)) {
    // Parts of the lines are summed on their own, so that there is work for many threads; but their sums, which are added up in the
    // end, should stay within a cache. Their number depends on the shape alone.
    const int64_t wanted = (16 + panels_ - 1) / panels_,
                  fit = std::max<int64_t>(1, (int64_t(1) << 20) / std::max<int64_t>(1, size_));
    parts_ = std::max<int64_t>(1, std::min({wanted, fit, lines_}));
  }

  void run(float* grad_weight) const {
    const Scratch<float> sums(parts_ * size_);
    parallel(parts_ * panels_, lines_ * c_.out[2] * size_ / std::max<int64_t>(1, parts_ * panels_), [&](int64_t i) {
      const int64_t part = i / panels_, panel = i % panels_;
      sum(part, panel, sums.data() + part * size_ + panel * convolution_panel * c_.taps() * c_.in_channels);
    });
    unpack_weight_gradient(c_, taps_, sums.data(), parts_, grad_weight);
  }

 private:
  // The gradients of a chunk of lines' positions in a panel's channels are copied one behind the other: 32 KiB, which the
  // first-level cache keeps for all taps and input channels.
  void sum(int64_t part, int64_t panel, float* to) const {
    const int64_t width = std::min(convolution_panel, c_.out_channels - panel * convolution_panel);
    const int64_t begin = lines_ * part / parts_, end = lines_ * (part + 1) / parts_;
    std::fill_n(to, c_.taps() * c_.in_channels * width, 0.0f);
    const int64_t most = std::max<int64_t>(1, 8192 / width);  // positions
    const int64_t piece = std::min(most, c_.out[2]), lines_each = std::max<int64_t>(1, most / std::max<int64_t>(1, c_.out[2]));
    thread_local std::vector<float> copied;
    thread_local std::vector<Run> runs;
    copied.resize(std::max<size_t>(copied.size(), size_t(lines_each * piece * width)));
    for (int64_t line = begin; line < end; line += lines_each) {
      const int64_t lines = std::min(lines_each, end - line);
      for (int64_t first = 0; first < c_.out[2]; first += piece) {
        const int64_t count = std::min(piece, c_.out[2] - first);
        const float* from = gradient_ + (line * c_.out[2] + first) * c_.out_channels + panel * convolution_panel;
        float* copy = copied.data();
        for (int64_t i = 0; i < lines * count; ++i)
          std::memcpy(copy + i * width, from + i * c_.out_channels, width * sizeof(float));
        float* result = to;
        for (const ConvolutionTap& tap : taps_) {
          collect_runs(tap, line, lines, first, count, width, copy, runs);
          for (int64_t channel = 0; channel < c_.in_channels; channel += convolution_rows, result += convolution_rows * width) {
            const int64_t rows = std::min<int64_t>(convolution_rows, c_.in_channels - channel);
            correlated_tiles[convolution_tile_index(rows, width / lanes<float>)](runs.data(), int64_t(runs.size()),
                                                                                 c_.stride[2] * c_.in_channels, channel, result);
            if (rows < convolution_rows) result -= (convolution_rows - rows) * width;
          }
        }
      }
    }
  }

  // The positions of a chunk whose input a tap finds inside, line by line.
  void collect_runs(const ConvolutionTap& tap, int64_t line, int64_t lines, int64_t first, int64_t count, int64_t width,
                    const float* copy, std::vector<Run>& runs) const {
    runs.clear();
    const int64_t stride = c_.stride[2], offset = tap.offset[2];
    // first .. first + count - 1, of which 0 <= p stride + offset < in
    const int64_t low = offset < 0 ? (-offset + stride - 1) / stride : 0;
    const int64_t high = c_.in[2] > offset ? (c_.in[2] - offset + stride - 1) / stride : 0;
    const int64_t begin = std::max(first, low), end = std::min(first + count, high);
    if (begin >= end) return;
    for (int64_t i = 0; i < lines; ++i) {
      const int64_t at = line + i, row = at % c_.out[1], plane = at / c_.out[1] % c_.out[0], sample = at / c_.out[1] / c_.out[0];
      const int64_t a = plane * c_.stride[0] + tap.offset[0], b = row * c_.stride[1] + tap.offset[1];
      if (a < 0 || a >= c_.in[0] || b < 0 || b >= c_.in[1]) continue;
      const int64_t position = ((sample * c_.in[0] + a) * c_.in[1] + b) * c_.in[2] + begin * stride + offset;
      runs.push_back({input_ + position * c_.in_channels, copy + (i * count + begin - first) * width, end - begin});
    }
  }

  const Convolution& c_;
  const float *gradient_, *input_;
  const int64_t lines_, panels_, size_;
  int64_t parts_;
  const std::vector<ConvolutionTap> taps_;
};

}  // namespace

void convolution_weight_gradient(const Convolution& convolution, const float* grad_output, const float* input, float* grad_weight) {
  WeightGradient(convolution, grad_output, input).run(grad_weight);
}

}  // namespace fastdl
