// The product that the forward and the data's gradient share: positions of a result, each the sum over taps of a position of a
// source, or of zeros where the tap falls outside, times the tap's weights.
#pragma once

#include "convolution_pack.h"

namespace fastdl {

struct Gather {
  int64_t samples;
  const float* source;
  int64_t source_size[3], depth;
  float* result;
  int64_t result_size[3], columns;
  // The grid of positions that take these taps: of the result, first + each g, of the source, step g + the tap's offset.
  int64_t grid[3], first[3], each[3], step[3];
  std::vector<ConvolutionTap> taps;
  const float* weights;  // packed
  const float* bias;
  const Finish* finish;  // or null
  double* moments;       // (tasks(), 2, columns): mean and sum of squared deviations of each task's positions; or null

  int64_t positions() const { return samples * grid[0] * grid[1] * grid[2]; }
  // Tasks are positions one behind the other. Their number depends on the shape alone. A task's tiles, at most 64, share a block of
  // weights in the second-level cache; a tile has convolution_rows positions. As many as whole sixteens, of equal size but for one
  // tile, so that 2, 4, 8 and 16 threads have the same to do: 17 tasks, the last one a third of the others, took two threads a
  // tenth longer, 49 took 2 % longer.
  int64_t tiles() const { return (positions() + convolution_rows - 1) / convolution_rows; }
  int64_t tasks() const { return tiles() <= 16 ? tiles() : (tiles() + 1023) / 1024 * 16; }
  int64_t first_of(int64_t task) const { return std::min(positions(), tiles() * task / tasks() * convolution_rows); }
  int64_t positions_of(int64_t task) const { return first_of(task + 1) - first_of(task); }
};

// The order of positions: samples in blocks of a tile's rows; in a block, position by position, those of all its samples. A tile
// then has one position of many samples, and its taps are outside for all of them or for none: a sixth of a 3x3 kernel's products
// at 8x8.
class GatherPosition {
 public:
  GatherPosition(const Gather& gather, int64_t index)
      : gather_(gather), per_sample_(gather.grid[0] * gather.grid[1] * gather.grid[2]) {
    const int64_t block = index / (per_sample_ * convolution_rows);
    first_ = block * convolution_rows;
    set_block();
    const int64_t rest = index - first_ * per_sample_, position = rest / samples_;
    sample_ = rest % samples_;
    at_[0] = position / (gather.grid[2] * gather.grid[1]);
    at_[1] = position / gather.grid[2] % gather.grid[1];
    at_[2] = position % gather.grid[2];
  }

  float* result() const {
    const int64_t *size = gather_.result_size, *first = gather_.first, *each = gather_.each;
    const int64_t position =
        ((first[0] + at_[0] * each[0]) * size[1] + first[1] + at_[1] * each[1]) * size[2] + first[2] + at_[2] * each[2];
    return gather_.result + ((first_ + sample_) * size[0] * size[1] * size[2] + position) * gather_.columns;
  }
  // The sample's source, and the position in it that offsets are counted from.
  const float* source(int64_t* from) const {
    const int64_t* size = gather_.source_size;
    for (int d = 0; d < 3; ++d) from[d] = at_[d] * gather_.step[d];
    return gather_.source + (first_ + sample_) * size[0] * size[1] * size[2] * gather_.depth;
  }

  void advance() {
    if (++sample_ < samples_) return;
    sample_ = 0;
    for (int d = 2; d >= 0; --d) {
      if (++at_[d] < gather_.grid[d]) return;
      at_[d] = 0;
    }
    first_ += convolution_rows;
    set_block();
  }

 private:
  void set_block() { samples_ = std::clamp<int64_t>(gather_.samples - first_, 1, convolution_rows); }

  const Gather& gather_;
  const int64_t per_sample_;
  int64_t first_, samples_, sample_, at_[3];
};

class GatherTask {
 public:
  GatherTask(const Gather& gather, int64_t task, const float* zeros)
      : gather_(gather), task_(task), tap_count_(int64_t(gather.taps.size())), count_(gather.positions_of(task)) {
    thread_local Places kept;
    const int64_t tiles = (count_ + convolution_rows - 1) / convolution_rows;
    places_ = &kept;
    kept.sources.resize(tiles * tap_count_ * convolution_rows);
    kept.results.resize(tiles * convolution_rows);
    kept.taps.resize(tiles * tap_count_);
    kept.tap_counts.resize(tiles);
    locate(zeros);
  }

  void run() const {
    if (!tap_count_) {  // a stride greater than the kernel passes positions over
      for (int64_t i = 0; i < count_; ++i) std::fill_n(places_->results[i], gather_.columns, 0.0f);
      return;
    }
    // Blocks of at most 256 KiB of a panel's weights.
    constexpr int64_t most = 65536 / convolution_panel;
    const int64_t depth_each = std::min(gather_.depth, most), taps_each = std::max<int64_t>(1, most / depth_each);
    const int64_t panels = (gather_.columns + convolution_panel - 1) / convolution_panel;
    for (int64_t panel = 0; panel < panels; ++panel) {
      const int64_t column = panel * convolution_panel, width = std::min(convolution_panel, gather_.columns - column);
      const float* weights = gather_.weights + column * tap_count_ * gather_.depth;
      GatheredTile tile{};
      tile.weight_step = gather_.depth * width;
      tile.column = column;
      tile.bias = gather_.bias ? gather_.bias + column : nullptr;
      for (int64_t tap = 0; tap < tap_count_; tap += taps_each)
        for (int64_t depth = 0; depth < gather_.depth; depth += depth_each) {
          tile.first_depth = depth;
          tile.depth = std::min(depth_each, gather_.depth - depth);
          tile.weights = weights + depth * width;
          tile.accumulate = tap > 0 || depth > 0;
          tile.finish = tap + taps_each >= tap_count_ && depth + depth_each >= gather_.depth ? gather_.finish : nullptr;
          for (int64_t i = 0; i < count_; i += convolution_rows) {
            const int64_t rows = std::min<int64_t>(convolution_rows, count_ - i), index = i / convolution_rows;
            const int32_t* taps = &places_->taps[index * tap_count_];
            int64_t begin = 0, end = places_->tap_counts[index];
            if (taps_each < tap_count_) {
              const int32_t* last = taps + end;
              begin = std::lower_bound(taps, last, int32_t(tap)) - taps;
              end = std::lower_bound(taps, last, int32_t(tap + taps_each)) - taps;
              if (begin == end && tile.accumulate && !tile.finish) continue;
            }
            tile.taps = taps + begin;
            tile.tap_count = end - begin;
            tile.sources = &places_->sources[(index * tap_count_ + begin) * convolution_rows];
            tile.results = &places_->results[i];
            tile.next = panel == 0 ? next_sources(index + 1, tap, taps_each) : nullptr;
            if (!tile.accumulate) fetch_results(i + convolution_rows, column, width);
            gathered_tiles[convolution_tile_index(rows, width / lanes<float>)](tile);
          }
        }
      if (gather_.moments) moments(column, width);
    }
  }

 private:
  // Where a task's tiles find what they need.
  struct Places {
    std::vector<const float*> sources;  // (tiles, taps, convolution_rows), of a tile's taps
    std::vector<float*> results;
    std::vector<int32_t> taps, tap_counts;
  };

  // The sources of a tile's last tap within a block, which no tile before it has read; null for a tile that is not whole.
  const float* const* next_sources(int64_t index, int64_t first_tap, int64_t taps) const {
    if ((index + 1) * convolution_rows > count_) return nullptr;
    const int32_t* list = &places_->taps[index * tap_count_];
    const int64_t end = std::lower_bound(list, list + places_->tap_counts[index], int32_t(first_tap + taps)) - list;
    if (end == 0 || list[end - 1] < first_tap) return nullptr;
    return &places_->sources[(index * tap_count_ + end - 1) * convolution_rows];
  }

  // Brings where a tile's results go into the cache, and what is added to them, while the tile before it is worked on.
  void fetch_results(int64_t first, int64_t column, int64_t width) const {
    const float* residual = gather_.finish ? gather_.finish->residual : nullptr;
    for (int64_t i = first; i < std::min<int64_t>(first + convolution_rows, count_); ++i) {
      const float* to = places_->results[i] + column;
      for (int64_t c = 0; c < width; c += 16) __builtin_prefetch(to + c, 1);
      for (int64_t c = 0; residual && c < width; c += 16) __builtin_prefetch(residual + (to - gather_.result) + c);
    }
  }

  void locate(const float* zeros) const {
    GatherPosition position(gather_, gather_.first_of(task_));
    const float* bases[convolution_rows];
    int64_t from[convolution_rows][3];
    for (int64_t i = 0; i < count_; i += convolution_rows) {
      const int64_t rows = std::min<int64_t>(convolution_rows, count_ - i), index = i / convolution_rows;
      for (int64_t r = 0; r < rows; ++r, position.advance()) {
        places_->results[i + r] = position.result();
        bases[r] = position.source(from[r]);
      }
      const bool same = std::all_of(from + 1, from + rows, [&](const auto& at) { return std::equal(at, at + 3, from[0]); });
      const float** sources = &places_->sources[index * tap_count_ * convolution_rows];
      int32_t* taps = &places_->taps[index * tap_count_];
      int32_t found = 0;
      for (int64_t tap = 0; tap < tap_count_; ++tap) {
        const int64_t* offset = gather_.taps[tap].offset;
        bool any = false;
        if (same) {  // for all rows or for none: row by row this took 14 % of (32, 32, 16, 16) with 3x3, on Zen 5
          const int64_t distance = offset_of(from[0], offset);
          any = distance >= 0;
          for (int64_t r = 0; any && r < rows; ++r) sources[r] = bases[r] + distance;
        } else {
          for (int64_t r = 0; r < rows; ++r) {
            const int64_t distance = offset_of(from[r], offset);
            sources[r] = distance >= 0 ? bases[r] + distance : zeros;
            any |= distance >= 0;
          }
        }
        taps[found] = int32_t(tap);
        if (!any) continue;
        ++found;
        sources += convolution_rows;
      }
      places_->tap_counts[index] = found;
    }
  }

  // From a sample's begin to the position that a tap finds from here; -1 outside.
  int64_t offset_of(const int64_t* from, const int64_t* offset) const {
    const int64_t* size = gather_.source_size;
    const int64_t a = from[0] + offset[0], b = from[1] + offset[1], c = from[2] + offset[2];
    const bool inside = (uint64_t(a) < uint64_t(size[0])) & (uint64_t(b) < uint64_t(size[1])) & (uint64_t(c) < uint64_t(size[2]));
    return inside ? ((a * size[1] + b) * size[2] + c) * gather_.depth : -1;
  }

  // Summed from the task's first position on: squares of values about 1e4 would leave nothing of a deviation of 1.
  void moments(int64_t column, int64_t width) const {
    double sums[2][convolution_panel + lanes<float>] = {};
    const float* from = places_->results[0] + column;
    for (int64_t i = 0; i < count_; i += convolution_rows) {
      const int64_t rows = std::min<int64_t>(convolution_rows, count_ - i);
      for (int64_t c = 0; c < width; c += lanes<float>) {
        const Vector<float> first = load_vector(from + c);
        Vector<float> sum{}, squares{};
        for (int64_t r = 0; r < rows; ++r) {
          const Vector<float> d = load_vector(places_->results[i + r] + column + c) - first;
          sum += d;
          squares += d * d;
        }
        WideSum<float>::add_to(sums[0] + c, sum);
        WideSum<float>::add_to(sums[1] + c, squares);
      }
    }
    double* means = gather_.moments + task_ * 2 * gather_.columns + column;
    for (int64_t c = 0; c < width; ++c) {
      const double mean = sums[0][c] / double(count_), deviations = sums[1][c] - mean * sums[0][c];
      means[c] = double(from[c]) + mean;
      means[gather_.columns + c] = deviations;
    }
  }

  const Gather& gather_;
  const int64_t task_, tap_count_, count_;
  Places* places_;
};

inline void run_gather(const Gather& gather) {
  const std::vector<float> zeros(gather.depth);
  // In values that are read or written once, as parallel() counts work: 64 products take as long. In inputs alone a (2, 64, 8, 8)
  // with 3x3 seemed too little for a second thread, which halves its time.
  const int64_t products = gather.positions() * int64_t(gather.taps.size()) * gather.depth * gather.columns;
  parallel(gather.tasks(), products / (64 * std::max<int64_t>(1, gather.tasks())),
           [&](int64_t task) { GatherTask(gather, task, zeros.data()).run(); });
}

}  // namespace fastdl
