// BatchNorm with activation and residual (Ioffe & Szegedy 2015, arXiv:1502.03167), forward and backward.
//
// A channel's values are a strip a sample (NCHW), or a column of rows (channels last, and NCHW with few positions). Strips are
// taken some channels at a time, so that even short ones make long runs of memory.
#include "batch_norm.h"

#include "row_sums.h"

namespace fastdl {
namespace {

bool by_rows(const Norm& norm, const Strides* strides, int count) {
  if (norm.channels_last) return true;
  for (int i = 0; i < count; ++i)
    if (strides[i].channel != norm.positions) return false;
  return norm.positions <= 16;
}

// Strips in parts: a slab is a few channels; a part is a range of samples, or of one sample's positions.
struct StripPlan {
  static constexpr int64_t most_channels = 16;
  int64_t channels_each, slabs, samples_each, length, pieces, parts;

  explicit StripPlan(const Norm& norm) {
    const int64_t enough = (1024 + norm.positions - 1) / norm.positions;
    channels_each = enough < most_channels ? enough : most_channels;
    slabs = (norm.channels + channels_each - 1) / channels_each;
    samples_each = segment_length * 4 / norm.positions < 1 ? 1 : segment_length * 4 / norm.positions;
    length = samples_each == 1 ? segment_length * 4 : norm.positions;
    pieces = norm.positions <= length ? 1 : (norm.positions + length - 1) / length;
    parts = (norm.samples + samples_each - 1) / samples_each * pieces;
  }

  // f(index of the channel in its slab, channel, sample, first position, positions)
  template <class F>
  void visit(const Norm& norm, int64_t slab, int64_t part, F&& f) const {
    const int64_t first = part / pieces * samples_each, begin = part % pieces * length;
    const int64_t last = first + samples_each < norm.samples ? first + samples_each : norm.samples;
    const int64_t n = norm.positions - begin < length ? norm.positions - begin : length;
    for (int64_t sample = first; sample < last; ++sample)
      for (int64_t j = 0; j < channels_in(norm, slab); ++j) f(j, slab * channels_each + j, sample, begin, n);
  }
  int64_t channels_in(const Norm& norm, int64_t slab) const {
    const int64_t left = norm.channels - slab * channels_each;
    return left < channels_each ? left : channels_each;
  }
  // In values: to the same samples' next channels, where a slab's stay in the cache (see fastdl::distance_ahead).
  int64_t distance_ahead(const Norm& norm) const {
    return channels_each * norm.samples * norm.positions > most_kept ? 0 : channels_each * norm.input_strides.channel;
  }
  int64_t work() const { return channels_each * samples_each * length; }
};

template <class T>
class BatchNorm {
  using A = Arithmetic<T>;

 public:
  BatchNorm(const Norm& norm, bool given, double* statistics)
      : norm_(norm),
        given_(given),
        engine_(norm.activation, norm.parameter, norm.activation_first),
        mean_(statistics),
        variance_(statistics + norm.channels),
        reciprocal_deviation_(norm.channels),
        x_(static_cast<const T*>(norm.input)),
        r_(static_cast<const T*>(norm.residual)) {}

  void forward(T* y) {
    if (given_) take_statistics();
    const Strides strides[] = {norm_.input_strides, norm_.output_strides,
                               norm_.residual ? norm_.residual_strides : norm_.input_strides};
    if (by_rows(norm_, strides, 3)) forward_rows(y, RowPlan(norm_, strides, 3, true));
    else forward_strips(y);
  }

  void backward(const NormGradients& gradients) {
    take_statistics();
    const Strides strides[] = {norm_.input_strides, norm_.output_strides, gradients.output_strides,
                               norm_.residual ? norm_.residual_strides : norm_.input_strides};
    if (by_rows(norm_, strides, 4)) backward_rows(gradients, RowPlan(norm_, strides, 4, true));
    else backward_strips(gradients);
  }

 private:
  // -- strips ----------------------------------------------------------------------------------------------------------------

  void forward_strips(T* y) {
    const StripPlan plan(norm_);
    const int64_t ahead = plan.distance_ahead(norm_);
    std::vector<Moments> moments(given_ ? 0 : plan.parts * norm_.channels);
    auto first = [&](int64_t slab, int64_t begin, int64_t end, bool) {
      for (int64_t part = begin; !given_ && part < end; ++part) {
        StripMoments<A> total[StripPlan::most_channels];
        plan.visit(norm_, slab, part, [&](int64_t j, int64_t c, int64_t n, int64_t begin, int64_t count) {
          engine_.visit(x_ + offset(norm_.input_strides, n, c) + begin, residual(n, c, begin), count,
                        [&](const auto* z, int64_t m) { total[j].add(z, m); });
        });
        for (int64_t j = 0; j < plan.channels_in(norm_, slab); ++j)
          moments[part * norm_.channels + slab * plan.channels_each + j] = total[j].result();
      }
    };
    auto merge = [&](int64_t slab) {
      if (given_) return;
      for (int64_t j = 0; j < plan.channels_in(norm_, slab); ++j) {
        const int64_t c = slab * plan.channels_each + j;
        Moments total;
        for (int64_t part = 0; part < plan.parts; ++part) total.merge(moments[part * norm_.channels + c]);
        set_statistics(c, total);
      }
    };
    auto second = [&](int64_t slab, int64_t begin, int64_t end, bool) {
      for (int64_t part = begin; part < end; ++part)
        plan.visit(norm_, slab, part, [&](int64_t, int64_t c, int64_t n, int64_t begin, int64_t count) {
          const Affine<A> map = coefficients(c).template affine<A>();
          engine_.forward(x_ + offset(norm_.input_strides, n, c) + begin, residual(n, c, begin),
                          y + offset(norm_.output_strides, n, c) + begin, {}, count, 1, &map, ahead);
        });
    };
    two_phases(plan.slabs, plan.parts, plan.work(), first, merge, second);
  }

  void backward_strips(const NormGradients& gradients) {
    const StripPlan plan(norm_);
    const int64_t ahead = plan.distance_ahead(norm_);
    const T* g = static_cast<const T*>(gradients.output);
    T *gx = static_cast<T*>(gradients.input), *gr = static_cast<T*>(gradients.residual);
    std::vector<double> sums(2 * plan.parts * norm_.channels);
    std::vector<Slope<A>> slopes(norm_.channels);
    auto first = [&](int64_t slab, int64_t begin, int64_t end, bool) {
      for (int64_t part = begin; part < end; ++part) {
        double* sum = &sums[2 * (part * norm_.channels + slab * plan.channels_each)];
        plan.visit(norm_, slab, part, [&](int64_t j, int64_t c, int64_t n, int64_t begin, int64_t count) {
          const Affine<A> map = coefficients(c).template affine<A>();
          engine_.reduce(x_ + offset(norm_.input_strides, n, c) + begin, residual(n, c, begin),
                         g + offset(gradients.output_strides, n, c) + begin, nullptr, {}, count, 1, &map, sum + 2 * j, ahead);
        });
      }
    };
    auto merge = [&](int64_t slab) {
      for (int64_t j = 0; j < plan.channels_in(norm_, slab); ++j) {
        const int64_t c = slab * plan.channels_each + j;
        double gradient_sum = 0, product_sum = 0;
        for (int64_t part = 0; part < plan.parts; ++part) {
          gradient_sum += sums[2 * (part * norm_.channels + c)];
          product_sum += sums[2 * (part * norm_.channels + c) + 1];
        }
        slopes[c] = finish(c, gradient_sum, product_sum, gradients);
      }
    };
    auto second = [&](int64_t slab, int64_t begin, int64_t end, bool) {
      if (!gx && !gr) return;
      for (int64_t part = begin; part < end; ++part)
        plan.visit(norm_, slab, part, [&](int64_t, int64_t c, int64_t n, int64_t begin, int64_t count) {
          const int64_t out = offset(norm_.output_strides, n, c) + begin;
          const Affine<A> map = coefficients(c).template affine<A>();
          engine_.backward(x_ + offset(norm_.input_strides, n, c) + begin, residual(n, c, begin),
                           g + offset(gradients.output_strides, n, c) + begin, gx ? gx + out : nullptr, gr ? gr + out : nullptr, {},
                           count, 1, &map, &slopes[c]);
        });
    };
    two_phases(plan.slabs, plan.parts, plan.work(), first, merge, second);
  }

  // -- rows: one slab of all channels -------------------------------------------------------------------------------------------

  void forward_rows(T* y, const RowPlan& plan) {
    const int64_t outer = plan.flat ? 1 : norm_.samples, parts = outer * plan.blocks, channels = norm_.channels;
    std::vector<double> moments(given_ ? 0 : parts * 2 * channels);
    ColumnCoefficients<A> columns(plan.columns);
    auto first = [&](int64_t, int64_t begin, int64_t end, bool) {
      for (int64_t part = begin; !given_ && part < end; ++part) {
        const int64_t n = part / plan.blocks;
        double* means = &moments[part * 2 * channels];
        block_moments(engine_, plan, part % plan.blocks, plan.at(x_, norm_.input_strides, n, 0),
                      plan.at(r_, norm_.residual_strides, n, 0), means, means + channels);
      }
    };
    auto merge = [&](int64_t) {
      if (!given_) merge_samples(plan, outer, moments.data());
      set_affine(columns, plan);
    };
    auto second = [&](int64_t, int64_t begin, int64_t end, bool) {
      visit_blocks(plan, begin, end, [&](int64_t n, int64_t row, int64_t rows, int64_t width) {
        engine_.forward_rows(plan.at(x_, norm_.input_strides, n, row), plan.at(r_, norm_.residual_strides, n, row),
                             plan.at(y, norm_.output_strides, n, row), rows, width, columns.affine(),
                             plan.next_rows(norm_.input_strides));
      });
    };
    two_phases(1, parts, block_work(plan), first, merge, second);
  }

  void backward_rows(const NormGradients& gradients, const RowPlan& plan) {
    const int64_t outer = plan.flat ? 1 : norm_.samples, parts = outer * plan.blocks, channels = norm_.channels;
    const T* g = static_cast<const T*>(gradients.output);
    T *gx = static_cast<T*>(gradients.input), *gr = static_cast<T*>(gradients.residual);
    std::vector<double> sums(parts * 2 * channels);
    ColumnCoefficients<A> columns(plan.columns);
    set_affine(columns, plan);
    auto first = [&](int64_t, int64_t begin, int64_t end, bool) {
      for (int64_t part = begin; part < end; ++part) {
        const int64_t n = part / plan.blocks;
        double* sum = &sums[part * 2 * channels];
        block_sums(engine_, plan, part % plan.blocks, plan.at(x_, norm_.input_strides, n, 0),
                   plan.at(r_, norm_.residual_strides, n, 0), plan.at(g, gradients.output_strides, n, 0), {nullptr, 0},
                   columns.affine(), sum, sum + channels, plan.next_rows(norm_.input_strides));
      }
    };
    auto merge = [&](int64_t) {
      std::vector<Slope<A>> slopes(channels);
      for (int64_t c = 0; c < channels; ++c) {
        double gradient_sum = 0, product_sum = 0;
        for (int64_t part = 0; part < parts; ++part) {
          gradient_sum += sums[part * 2 * channels + c];
          product_sum += sums[(part * 2 + 1) * channels + c];
        }
        slopes[c] = finish(c, gradient_sum, product_sum, gradients);
      }
      for (int64_t j = 0; j < plan.columns; ++j) columns.set(j, slopes[plan.channel(j)]);
    };
    auto second = [&](int64_t, int64_t begin, int64_t end, bool) {
      if (!gx && !gr) return;
      visit_blocks(plan, begin, end, [&](int64_t n, int64_t row, int64_t rows, int64_t width) {
        engine_.backward_rows(plan.at(x_, norm_.input_strides, n, row), plan.at(r_, norm_.residual_strides, n, row),
                              plan.at(g, gradients.output_strides, n, row), plan.at(gx, norm_.output_strides, n, row),
                              plan.at(gr, norm_.output_strides, n, row), rows, width, columns.affine(), columns.slope());
      });
    };
    two_phases(1, parts, block_work(plan), first, merge, second);
  }

  // -- shared ----------------------------------------------------------------------------------------------------------------

  static int64_t offset(const Strides& strides, int64_t n, int64_t channel) {
    return n * strides.sample + channel * strides.channel;
  }
  // f(sample, first row, rows, columns) over a range of parts, each a block of one sample's rows (or of all samples').
  template <class F>
  static void visit_blocks(const RowPlan& plan, int64_t begin, int64_t end, F&& f) {
    for (int64_t part = begin; part < end; ++part) {
      const int64_t block = part % plan.blocks;
      plan.visit(block, block + 1, [&](int64_t row, int64_t rows, int64_t width) { f(part / plan.blocks, row, rows, width); });
    }
  }
  static int64_t block_work(const RowPlan& plan) { return (plan.block < plan.rows ? plan.block : plan.rows) * plan.columns; }
  const T* residual(int64_t n, int64_t channel, int64_t begin) const {
    return r_ ? r_ + offset(norm_.residual_strides, n, channel) + begin : nullptr;
  }
  Coefficients coefficients(int64_t channel) const { return {mean_[channel], reciprocal_deviation_[channel], norm_, channel}; }
  void set_statistics(int64_t channel, const Moments& moments) {
    mean_[channel] = moments.mean;
    variance_[channel] = moments.variance();
    reciprocal_deviation_[channel] = reciprocal_deviation(norm_, variance_[channel]);
  }
  void take_statistics() {
    for (int64_t c = 0; c < norm_.channels; ++c) reciprocal_deviation_[c] = reciprocal_deviation(norm_, variance_[c]);
  }

  void set_affine(ColumnCoefficients<A>& columns, const RowPlan& plan) const {
    for (int64_t j = 0; j < plan.columns; ++j) columns.set(j, coefficients(plan.channel(j)).template affine<A>());
  }

  void merge_samples(const RowPlan& plan, int64_t outer, const double* moments) {
    const int64_t channels = norm_.channels;
    std::vector<double> means(channels), squares(channels);
    std::vector<Moments> totals(channels);
    double count = 0;
    for (int64_t b = 0; b < plan.blocks; ++b) count += plan.count(b);
    for (int64_t n = 0; n < outer; ++n) {
      merge_blocks(plan, moments + n * plan.blocks * 2 * channels, means.data(), squares.data());
      for (int64_t c = 0; c < channels; ++c) totals[c].merge({count, means[c], squares[c]});
    }
    for (int64_t c = 0; c < channels; ++c) set_statistics(c, totals[c]);
  }

  // The parameters' gradients of one channel, and the input's coefficients. Given statistics are constants, and send nothing back.
  Slope<A> finish(int64_t c, double gradient_sum, double product_sum, const NormGradients& gradients) const {
    const Coefficients k = coefficients(c);
    const double normalized = k.template normalized_product<A>(gradient_sum, product_sum);
    gradients.bias[c] = gradient_sum;
    gradients.weight[c] = normalized;
    if (given_) return k.template slope<A>(0, 0);
    const double count = double(norm_.samples) * double(norm_.positions);
    return k.template slope<A>(k.weight * gradient_sum / count, k.weight * normalized / count);
  }

  const Norm& norm_;
  bool given_;
  Engine<T> engine_;
  double *mean_, *variance_;
  std::vector<double> reciprocal_deviation_;
  const T *x_, *r_;
};

}  // namespace

void batch_norm_forward(const Norm& norm, bool given, void* output, double* statistics) {
  with_dtype(norm.dtype, [&](auto t) {
    using T = decltype(t);
    BatchNorm<T>(norm, given, statistics).forward(static_cast<T*>(output));
  });
}

void batch_norm_backward(const Norm& norm, bool given, const double* statistics, const NormGradients& gradients) {
  with_dtype(norm.dtype, [&](auto t) {
    using T = decltype(t);
    BatchNorm<T>(norm, given, const_cast<double*>(statistics)).backward(gradients);
  });
}

}  // namespace fastdl
