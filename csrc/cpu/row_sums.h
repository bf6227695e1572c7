// Sums over blocks of rows (see RowPlan), folded from columns to channels: the first phase of every norm on rows.
#pragma once

#include "normalize.h"

namespace fastdl {

// Means and sums of squares of each channel over one block, (channels) each; their count is plan.count(block).
template <class T, class A = Arithmetic<T>>
void block_moments(const Engine<T>& engine, const RowPlan& plan, int64_t block, Rows<const T> x, Rows<const T> r, double* means,
                   double* squares) {
  std::vector<Moments> folded;
  const bool direct = plan.columns == plan.channels;
  if (!direct) folded.resize(plan.channels);
  plan.visit(block, block + 1, [&](int64_t row, int64_t rows, int64_t columns) {
    // Tiles of rows too wide for one tile come in several ranges of columns; each range has its own sums.
    std::vector<std::pair<int64_t, ColumnMoments<A>>> ranges;
    const Rows<const T> from = {x.first + row * x.stride, x.stride};
    const Rows<const T> with = r ? Rows<const T>{r.first + row * r.stride, r.stride} : r;
    engine.visit_rows(from, with, rows, columns, [&](auto z, int64_t column, int64_t height, int64_t width) {
      auto range = ranges.begin();
      while (range != ranges.end() && range->first != column) ++range;
      if (range == ranges.end()) range = ranges.emplace(range, column, ColumnMoments<A>(width));
      range->second.add(z.first, z.stride, height);
    });
    for (auto& [column, moments] : ranges) {
      const double n = moments.count();
      for (int64_t j = 0; j < moments.columns(); ++j) {
        if (direct) {
          means[column + j] = moments.means()[j];
          squares[column + j] = moments.squares()[j];
        } else {
          folded[plan.channel(column + j)].merge({n, moments.means()[j], moments.squares()[j]});
        }
      }
    }
  });
  for (int64_t c = 0; c < int64_t(folded.size()); ++c) {
    means[c] = folded[c].mean;
    squares[c] = folded[c].squares;
  }
}

// Sums of gu, and of gu (x - center), of each channel over one block, (channels) each; keep = gu where it is not null.
template <class T, class A = Arithmetic<T>>
void block_sums(const Engine<T>& engine, const RowPlan& plan, int64_t block, Rows<const T> x, Rows<const T> r, Rows<const T> g,
                Rows<A> keep, AffineColumns<A> map, double* gradient_sums, double* product_sums, int64_t ahead) {
  const int64_t stride = plan.columns + 16;  // room for a whole vector past the end
  std::vector<double> sums(2 * stride);
  for (int64_t c = 0; c < plan.channels; ++c) gradient_sums[c] = product_sums[c] = 0;
  plan.visit(block, block + 1, [&](int64_t first, int64_t rows, int64_t columns) {
    engine.reduce_rows({x.first + first * x.stride, x.stride}, r ? Rows<const T>{r.first + first * r.stride, r.stride} : r,
                       {g.first + first * g.stride, g.stride}, keep ? Rows<A>{keep.first + first * keep.stride, keep.stride} : keep,
                       rows, columns, map, sums.data(), sums.data() + stride, ahead);
  });
  for (int64_t j = 0; j < plan.columns; ++j) {
    gradient_sums[plan.channel(j)] += sums[j];
    product_sums[plan.channel(j)] += sums[stride + j];
  }
}

// The moments of all blocks from those of each, channel by channel: blocks is (count of blocks, 2, channels).
inline void merge_blocks(const RowPlan& plan, const double* blocks, double* means, double* squares) {
  const int64_t channels = plan.channels;
  double total = 0;
  for (int64_t b = 0; b < plan.blocks; ++b) {
    const double *mean = blocks + b * 2 * channels, *square = mean + channels;
    const double joined = total + plan.count(b), weight = plan.count(b) / joined, cross = total * plan.count(b) / joined;
    for (int64_t c = 0; c < channels; ++c) {
      if (b == 0) {
        means[c] = mean[c];
        squares[c] = square[c];
      } else {
        const double distance = mean[c] - means[c];
        means[c] += distance * weight;
        squares[c] += square[c] + distance * distance * cross;
      }
    }
    total = joined;
  }
}

}  // namespace fastdl
