// GroupNorm with its activation (Wu & He 2018, arXiv:1803.08494), forward and backward.
//
// A group's values are strips, one a channel (NCHW), or columns of rows (channels last, and NCHW with so few positions that strips
// would be shorter than a vector). Both come down to the same two phases: sums over parts of a group, then an affine map.
#include "group_norm.h"

#include "row_sums.h"

namespace fastdl {
namespace {

bool by_rows(const Norm& norm, const Strides* strides, int count) {
  if (norm.channels_last) return true;
  for (int i = 0; i < count; ++i)
    if (strides[i].channel != norm.positions) return false;
  return norm.positions < 16;
}

// The geometry of strips: a group is `runs` runs of contiguous values: one of all its channels, or one a channel.
struct StripPlan {
  int64_t width, run, runs, segments, parts;

  StripPlan(const Norm& norm, int64_t groups) : width(norm.channels / groups) {
    const bool dense = norm.input_strides.channel == norm.positions &&
                       (!norm.residual || norm.residual_strides.channel == norm.positions || !norm.activation_first);
    run = dense ? width * norm.positions : norm.positions;
    runs = dense ? 1 : width;
    segments = segment_count(run);
    parts = runs * segments;
  }
};

template <class T>
class GroupNorm {
  using A = Arithmetic<T>;

 public:
  GroupNorm(const Norm& norm, int64_t groups, double* statistics)
      : norm_(norm),
        engine_(norm.activation, norm.parameter, norm.activation_first),
        groups_(groups),
        width_(norm.channels / groups),
        mean_(statistics),
        variance_(statistics + norm.samples * groups),
        reciprocal_deviation_(norm.samples * groups),
        x_(static_cast<const T*>(norm.input)),
        r_(static_cast<const T*>(norm.residual)) {}

  void forward(T* y) {
    const Strides strides[] = {norm_.input_strides, norm_.output_strides,
                               norm_.residual ? norm_.residual_strides : norm_.input_strides};
    if (by_rows(norm_, strides, 3)) forward_rows(y, RowPlan(norm_, strides, 3, false));
    else forward_strips(y);
  }

  void backward(const NormGradients& gradients) {
    const Strides strides[] = {norm_.input_strides, norm_.output_strides, gradients.output_strides,
                               norm_.residual ? norm_.residual_strides : norm_.input_strides};
    for (int64_t slab = 0; slab < norm_.samples * groups_; ++slab)
      reciprocal_deviation_[slab] = reciprocal_deviation(norm_, variance_[slab]);
    gradient_sums_.resize(norm_.samples * norm_.channels);
    product_sums_.resize(norm_.samples * norm_.channels);
    if (by_rows(norm_, strides, 4)) backward_rows(gradients, RowPlan(norm_, strides, 4, false));
    else backward_strips(gradients);
    parallel(norm_.channels, norm_.samples, [&](int64_t c) {
      double weight = 0, bias = 0;
      for (int64_t n = 0; n < norm_.samples; ++n) {
        weight += product_sums_[n * norm_.channels + c];
        bias += gradient_sums_[n * norm_.channels + c];
      }
      gradients.weight[c] = weight;
      gradients.bias[c] = bias;
    });
  }

 private:
  // -- strips ----------------------------------------------------------------------------------------------------------------

  void forward_strips(T* y) {
    const StripPlan plan(norm_, groups_);
    std::vector<Moments> moments(norm_.samples * groups_ * plan.parts);
    const int64_t parts = plan.parts, segments = segment_count(norm_.positions);
    auto first = [&](int64_t slab, int64_t begin, int64_t end, bool) {
      const int64_t n = slab / groups_, channel = slab % groups_ * width_;
      for (int64_t part = begin; part < end; ++part) {
        const int64_t run = channel + part / plan.segments, from = part % plan.segments * segment_length;
        StripMoments<A> total;
        engine_.visit(x_ + offset(norm_.input_strides, n, run) + from, residual(n, run, from),
                      plan.run - from < segment_length ? plan.run - from : segment_length,
                      [&](const auto* z, int64_t count) { total.add(z, count); });
        moments[slab * parts + part] = total.result();
      }
    };
    auto merge = [&](int64_t slab) {
      Moments total;
      for (int64_t part = 0; part < parts; ++part) total.merge(moments[slab * parts + part]);
      set_statistics(slab, total);
    };
    // The second phase shares out the channels' segments over as many parts as there were in the first.
    const int64_t pieces = width_ * segments;
    const int64_t ahead = distance_ahead(width_ * norm_.positions);
    auto second = [&](int64_t slab, int64_t begin, int64_t end, bool) {
      visit_strips(slab, pieces * begin / parts, pieces * end / parts, segments, [&](const Strips& s) {
        engine_.forward(x_ + offset(norm_.input_strides, s.sample, s.channel) + s.from, residual(s.sample, s.channel, s.from),
                        y + offset(norm_.output_strides, s.sample, s.channel) + s.from, steps(0), s.positions, s.count,
                        Maps(*this, slab, s).maps, ahead);
      });
    };
    two_phases(norm_.samples * groups_, parts, plan.run < segment_length ? plan.run : segment_length, first, merge, second);
  }

  void backward_strips(const NormGradients& gradients) {
    const int64_t segments = segment_count(norm_.positions), parts = width_ * segments;
    const T* g = static_cast<const T*>(gradients.output);
    T *gx = static_cast<T*>(gradients.input), *gr = static_cast<T*>(gradients.residual);
    std::vector<double> sums(2 * norm_.samples * norm_.channels * segments);
    std::vector<double> means(2 * norm_.samples * groups_);  // m1 and m2 of each group
    const bool costly = is_costly(norm_.activation) && !norm_.activation_first && width_ * norm_.positions <= most_kept;
    const int64_t ahead = distance_ahead(width_ * norm_.positions);
    auto first = [&](int64_t slab, int64_t begin, int64_t end, bool together) {
      A* keep = costly && together ? kept_buffer<A>(width_ * norm_.positions) : nullptr;
      visit_strips(slab, begin, end, segments, [&](const Strips& s) {
        double* sum = &sums[2 * (slab * parts + s.part)];
        std::fill(sum, sum + 2 * s.count, 0.0);
        engine_.reduce(x_ + offset(norm_.input_strides, s.sample, s.channel) + s.from, residual(s.sample, s.channel, s.from),
                       g + offset(gradients.output_strides, s.sample, s.channel) + s.from, keep,
                       steps(gradients.output_strides.channel), s.positions, s.count, Maps(*this, slab, s).maps, sum, ahead);
        if (keep) keep += s.positions * s.count;
      });
    };
    auto merge = [&](int64_t slab) {
      for (int64_t j = 0; j < width_; ++j) {
        const int64_t channel = slab % groups_ * width_ + j, at = slab / groups_ * norm_.channels + channel;
        double gradient_sum = 0, product_sum = 0;
        for (int64_t s = 0; s < segments; ++s) {
          gradient_sum += sums[2 * (slab * parts + j * segments + s)];
          product_sum += sums[2 * (slab * parts + j * segments + s) + 1];
        }
        gradient_sums_[at] = gradient_sum;
        product_sums_[at] = coefficients(slab, channel).template normalized_product<A>(gradient_sum, product_sum);
      }
      merge_means(slab, &means[2 * slab]);
    };
    auto second = [&](int64_t slab, int64_t begin, int64_t end, bool together) {
      if (!gx && !gr) return;
      const A* kept = costly && together ? kept_buffer<A>(width_ * norm_.positions) : nullptr;
      visit_strips(slab, begin, end, segments, [&](const Strips& s) {
        const int64_t out = offset(norm_.output_strides, s.sample, s.channel) + s.from;
        const T* x = x_ + offset(norm_.input_strides, s.sample, s.channel) + s.from;
        T *to = gx ? gx + out : nullptr, *residual_to = gr ? gr + out : nullptr;
        const StripSteps step = steps(gradients.output_strides.channel);
        const Maps maps(*this, slab, s);
        Slope<A> slopes[most_strips];
        for (int64_t i = 0; i < s.count; ++i)
          slopes[i] = coefficients(slab, s.channel + i).template slope<A>(means[2 * slab], means[2 * slab + 1]);
        if (kept) {
          engine_.backward_kept(x, kept, to, residual_to, step, s.positions, s.count, maps.maps, slopes);
          kept += s.positions * s.count;
        } else {
          engine_.backward(x, residual(s.sample, s.channel, s.from),
                           g + offset(gradients.output_strides, s.sample, s.channel) + s.from, to, residual_to, step, s.positions,
                           s.count, maps.maps, slopes);
        }
      });
    };
    two_phases(norm_.samples * groups_, parts, norm_.positions < segment_length ? norm_.positions : segment_length, first, merge,
               second);
  }

  // -- rows ------------------------------------------------------------------------------------------------------------------

  void forward_rows(T* y, const RowPlan& plan) {
    const int64_t samples = norm_.samples, channels = norm_.channels, blocks = plan.blocks;
    const int64_t ahead = plan.next_sample(norm_.input_strides);
    const bool few =
        plan.replicas == 1 && plan.rows < 8;  // too few rows for sums by column: take each group's stretch of a row as a strip
    std::vector<double> moments(few ? 0 : samples * blocks * 2 * channels);
    std::vector<ColumnCoefficients<A>> coefficients(samples, ColumnCoefficients<A>(0));
    auto first = [&](int64_t n, int64_t begin, int64_t end, bool) {
      for (int64_t block = begin; !few && block < end; ++block) {
        double* means = &moments[(n * blocks + block) * 2 * channels];
        block_moments(engine_, plan, block, plan.at(x_, norm_.input_strides, n, 0), plan.at(r_, norm_.residual_strides, n, 0),
                      means, means + channels);
      }
    };
    auto merge = [&](int64_t n) {
      if (few) strip_moments(n, plan);
      else merge_groups(n, plan, &moments[n * blocks * 2 * channels]);
      coefficients[n] = column_affine(n, plan);
    };
    auto second = [&](int64_t n, int64_t begin, int64_t end, bool) {
      plan.visit(begin, end, [&](int64_t row, int64_t rows, int64_t columns) {
        engine_.forward_rows(plan.at(x_, norm_.input_strides, n, row), plan.at(r_, norm_.residual_strides, n, row),
                             plan.at(y, norm_.output_strides, n, row), rows, columns, coefficients[n].affine(), ahead);
      });
    };
    two_phases(samples, blocks, plan.block < plan.rows ? plan.block * plan.columns : plan.rows * plan.columns, first, merge,
               second);
  }

  void backward_rows(const NormGradients& gradients, const RowPlan& plan) {
    const int64_t samples = norm_.samples, channels = norm_.channels, blocks = plan.blocks;
    const T* g = static_cast<const T*>(gradients.output);
    T *gx = static_cast<T*>(gradients.input), *gr = static_cast<T*>(gradients.residual);
    std::vector<double> sums(samples * blocks * 2 * channels);
    std::vector<ColumnCoefficients<A>> coefficients(samples, ColumnCoefficients<A>(0));
    parallel(samples, plan.columns, [&](int64_t n) { coefficients[n] = column_affine(n, plan); });
    const int64_t values = plan.columns * plan.rows + plan.rest, ahead = plan.next_rows(norm_.input_strides);
    const bool costly = is_costly(norm_.activation) && !norm_.activation_first && values <= most_kept;
    auto first = [&](int64_t n, int64_t begin, int64_t end, bool together) {
      const Rows<A> keep = {costly && together ? kept_buffer<A>(values) : nullptr, plan.columns};
      for (int64_t block = begin; block < end; ++block) {
        double* sum = &sums[(n * blocks + block) * 2 * channels];
        block_sums(engine_, plan, block, plan.at(x_, norm_.input_strides, n, 0), plan.at(r_, norm_.residual_strides, n, 0),
                   plan.at(g, gradients.output_strides, n, 0), keep, coefficients[n].affine(), sum, sum + channels, ahead);
      }
    };
    auto merge = [&](int64_t n) {
      for (int64_t c = 0; c < channels; ++c) {
        double gradient_sum = 0, product_sum = 0;
        for (int64_t b = 0; b < blocks; ++b) {
          gradient_sum += sums[(n * blocks + b) * 2 * channels + c];
          product_sum += sums[((n * blocks + b) * 2 + 1) * channels + c];
        }
        gradient_sums_[n * channels + c] = gradient_sum;
        product_sums_[n * channels + c] =
            this->coefficients(n * groups_ + c / width_, c).template normalized_product<A>(gradient_sum, product_sum);
      }
      std::vector<double> means(2 * groups_);
      for (int64_t group = 0; group < groups_; ++group) merge_means(n * groups_ + group, &means[2 * group]);
      for (int64_t j = 0; j < plan.columns; ++j) {
        const int64_t c = plan.channel(j), group = c / width_;
        coefficients[n].set(j,
                            this->coefficients(n * groups_ + group, c).template slope<A>(means[2 * group], means[2 * group + 1]));
      }
    };
    auto second = [&](int64_t n, int64_t begin, int64_t end, bool together) {
      if (!gx && !gr) return;
      const A* kept = costly && together ? kept_buffer<A>(values) : nullptr;
      plan.visit(begin, end, [&](int64_t row, int64_t rows, int64_t columns) {
        const Rows<const T> x = plan.at(x_, norm_.input_strides, n, row);
        const Rows<T> to = plan.at(gx, norm_.output_strides, n, row), residual_to = plan.at(gr, norm_.output_strides, n, row);
        if (kept)
          engine_.backward_rows_kept(x, {kept + row * plan.columns, plan.columns}, to, residual_to, rows, columns,
                                     coefficients[n].affine(), coefficients[n].slope());
        else
          engine_.backward_rows(x, plan.at(r_, norm_.residual_strides, n, row), plan.at(g, gradients.output_strides, n, row), to,
                                residual_to, rows, columns, coefficients[n].affine(), coefficients[n].slope());
      });
    };
    two_phases(samples, blocks, plan.block < plan.rows ? plan.block * plan.columns : plan.rows * plan.columns, first, merge,
               second);
  }

  // -- shared ----------------------------------------------------------------------------------------------------------------

  // Some strips of a slab: whole channels next to each other, or a segment of one.
  struct Strips {
    int64_t part, sample, channel, from, positions, count;
  };
  static constexpr int64_t most_strips = 16;

  // f(strips) over a range of a slab's parts, each a segment of a channel.
  template <class F>
  void visit_strips(int64_t slab, int64_t begin, int64_t end, int64_t segments, F&& f) const {
    const int64_t n = slab / groups_, channel = slab % groups_ * width_;
    if (segments == 1) {
      for (int64_t part = begin; part < end; part += most_strips)
        f(Strips{part, n, channel + part, 0, norm_.positions, end - part < most_strips ? end - part : most_strips});
      return;
    }
    for (int64_t part = begin; part < end; ++part) {
      const int64_t from = part % segments * segment_length, left = norm_.positions - from;
      f(Strips{part, n, channel + part / segments, from, left < segment_length ? left : segment_length, 1});
    }
  }

  // The affine maps of some strips.
  struct Maps {
    Affine<A> maps[most_strips];

    Maps(const GroupNorm& norm, int64_t slab, const Strips& strips) {
      for (int64_t i = 0; i < strips.count; ++i) maps[i] = norm.coefficients(slab, strips.channel + i).template affine<A>();
    }
  };

  StripSteps steps(int64_t gradient) const {
    return {norm_.input_strides.channel, norm_.residual_strides.channel, gradient, norm_.output_strides.channel};
  }

  static int64_t offset(const Strides& strides, int64_t n, int64_t channel) {
    return n * strides.sample + channel * strides.channel;
  }
  const T* residual(int64_t n, int64_t channel, int64_t begin) const {
    return r_ ? r_ + offset(norm_.residual_strides, n, channel) + begin : nullptr;
  }
  Coefficients coefficients(int64_t slab, int64_t channel) const {
    return {mean_[slab], reciprocal_deviation_[slab], norm_, channel};
  }
  void set_statistics(int64_t slab, const Moments& moments) {
    mean_[slab] = moments.mean;
    variance_[slab] = moments.variance();
    reciprocal_deviation_[slab] = reciprocal_deviation(norm_, variance_[slab]);
  }

  ColumnCoefficients<A> column_affine(int64_t n, const RowPlan& plan) const {
    ColumnCoefficients<A> columns(plan.columns);
    for (int64_t j = 0; j < plan.columns; ++j) {
      const int64_t c = plan.channel(j);
      columns.set(j, coefficients(n * groups_ + c / width_, c).template affine<A>());
    }
    return columns;
  }

  // A sample's groups from its channels' moments, which all have the same count.
  void merge_groups(int64_t n, const RowPlan& plan, const double* blocks) {
    std::vector<double> means(norm_.channels), squares(norm_.channels);
    merge_blocks(plan, blocks, means.data(), squares.data());
    const double count = double(norm_.positions);
    for (int64_t group = 0; group < groups_; ++group) {
      Moments total;
      for (int64_t c = group * width_; c < (group + 1) * width_; ++c) total.merge({count, means[c], squares[c]});
      set_statistics(n * groups_ + group, total);
    }
  }

  void strip_moments(int64_t n, const RowPlan& plan) {
    const int64_t stretch = width_ * plan.inner;
    for (int64_t group = 0; group < groups_; ++group) {
      StripMoments<A> total;
      for (int64_t row = 0; row < plan.rows; ++row) {
        const Rows<const T> r = plan.at(r_, norm_.residual_strides, n, row);
        engine_.visit(plan.at(x_, norm_.input_strides, n, row).first + group * stretch, r ? r.first + group * stretch : nullptr,
                      stretch, [&](const auto* z, int64_t count) { total.add(z, count); });
      }
      set_statistics(n * groups_ + group, total.result());
    }
  }

  // m1 and m2 of Coefficients::slope.
  void merge_means(int64_t slab, double* means) const {
    means[0] = means[1] = 0;
    const double count = double(width_) * double(norm_.positions);
    for (int64_t c = slab % groups_ * width_; c < (slab % groups_ + 1) * width_; ++c) {
      const double weight = norm_.weight ? norm_.weight[c] : 1;
      means[0] += weight * gradient_sums_[slab / groups_ * norm_.channels + c] / count;
      means[1] += weight * product_sums_[slab / groups_ * norm_.channels + c] / count;
    }
  }

  const Norm& norm_;
  Engine<T> engine_;
  int64_t groups_, width_;
  double *mean_, *variance_;
  std::vector<double> reciprocal_deviation_;
  const T *x_, *r_;
  std::vector<double> gradient_sums_, product_sums_;  // by sample and channel: sum gu, and sum gu xhat
};

}  // namespace

void group_norm_forward(const Norm& norm, int64_t groups, void* output, double* statistics) {
  with_dtype(norm.dtype, [&](auto t) {
    using T = decltype(t);
    GroupNorm<T>(norm, groups, statistics).forward(static_cast<T*>(output));
  });
}

void group_norm_backward(const Norm& norm, int64_t groups, const double* statistics, const NormGradients& gradients) {
  with_dtype(norm.dtype, [&](auto t) {
    using T = decltype(t);
    GroupNorm<T>(norm, groups, const_cast<double*>(statistics)).backward(gradients);
  });
}

}  // namespace fastdl
