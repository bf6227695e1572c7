// Mean and variance that stay right when the mean is far larger than the deviation.
//
// Values are summed after subtracting a shift near their mean, in float for a few thousand values at a time; the sums are then
// merged in double (Chan, Golub & LeVeque 1983, "Algorithms for computing the sample variance", eq. 2.1). The shift is the mean so
// far. If a chunk's mean lies k deviations from it, its sum of squares loses a factor of k^2 in precision, but then the chunk's
// distance itself adds k^2 to the variance, so the result keeps its relative precision. One pass over memory.
#pragma once

#include <vector>

#include "storage.h"

namespace fastdl {

struct Moments {
  double count = 0, mean = 0, squares = 0;  // squares: sum of (x - mean)^2

  void merge(const Moments& other) {
    if (other.count == 0) return;
    if (count == 0) {
      *this = other;
      return;
    }
    const double total = count + other.count, distance = other.mean - mean;
    mean += distance * (other.count / total);
    squares += other.squares + distance * distance * (count * other.count / total);
    count = total;
  }
  double variance() const { return squares / count; }
};

// Moments of values that come as strips of contiguous memory.
template <class A>
class StripMoments {
 public:
  template <class T>
  void add(const T* x, int64_t n) {
    while (n > 0) {
      // The first chunk is shorter: its shift is a guess from a few values, spread out over it, which may be unlike the rest.
      const int64_t most = moments_.count == 0 ? first_chunk : chunk, m = n < most - pending_ ? n : most - pending_;
      if (pending_ == 0 && moments_.count == 0) shift_ = guess(x, m);
      const Vector<A> shift = broadcast(shift_);
      constexpr int64_t few = 8 * lanes<A>;
      for (int64_t start = 0; start < m; start += few) {
        Vector<A> sum{}, squares{};
        sweep<A>(m - start < few ? m - start : few, [&](int64_t offset, auto part) {
          const Vector<A> d = part.clear_rest(part.load(x + start + offset) - shift);
          sum += d;
          squares += d * d;
        });
        sum_.add(sum);
        squares_.add(squares);
      }
      pending_ += m;
      if (pending_ == most) flush();
      x += m;
      n -= m;
    }
  }

  const Moments& result() {
    flush();
    return moments_;
  }

 private:
  static constexpr int64_t chunk = 4096, first_chunk = 1024;

  // The mean of four vectors at equal distances, or of all that there is.
  template <class T>
  static A guess(const T* x, int64_t n) {
    constexpr int64_t width = lanes<A>;
    if (n >= 4 * width) {
      const int64_t step = (n - width) / 3;
      return sum_lanes<A>((load_vector(x) + load_vector(x + step)) + (load_vector(x + 2 * step) + load_vector(x + n - width))) /
             A(4 * width);
    }
    Vector<A> sum{};
    sweep<A>(n, [&](int64_t i, auto part) { sum += part.load(x + i); });
    return sum_lanes<A>(sum) / A(n);
  }

  void flush() {
    if (pending_ == 0) return;
    const double n = double(pending_), sum = sum_.total(), squares = squares_.total();
    moments_.merge({n, double(shift_) + sum / n, squares - sum * sum / n});
    shift_ = A(moments_.mean);
    sum_ = squares_ = WideSum<A>{};
    pending_ = 0;
  }

  Moments moments_;
  A shift_ = 0;
  int64_t pending_ = 0;
  WideSum<A> sum_, squares_;
};

// Moments of each column of rows of values; all columns have the same count.
template <class A>
class ColumnMoments {
 public:
  explicit ColumnMoments(int64_t columns) : columns_(columns), work_(3 * columns), moments_(2 * columns) {}

  template <class T>
  void add(const T* x, int64_t stride, int64_t rows) {
    while (rows > 0) {
      if (pending_ == 0 && count_ == 0) start(x, stride, rows < 8 ? rows : 8);
      const int64_t m = rows < chunk - pending_ ? rows : chunk - pending_;
      accumulate(x, stride, m);
      pending_ += m;
      if (pending_ == chunk) flush();
      x += m * stride;
      rows -= m;
    }
  }

  double count() {
    flush();
    return count_;
  }
  int64_t columns() const { return columns_; }
  const double* means() const { return moments_.data(); }
  const double* squares() const { return moments_.data() + columns_; }

 private:
  static constexpr int64_t chunk = 128;  // rows

  template <class T>
  void start(const T* x, int64_t stride, int64_t rows) {
    A* shift = work_.data();
    sweep<A>(columns_, [&](int64_t j, auto part) {
      Vector<A> sum{};
      for (int64_t k = 0; k < rows; ++k) sum += part.load(x + k * stride + j);
      part.store(shift + j, sum / A(rows));
    });
  }

  template <class T>
  void accumulate(const T* x, int64_t stride, int64_t rows) {
    const A* shift = work_.data();
    A *sums = work_.data() + columns_, *squares = sums + columns_;
    auto block = [&](auto count) {
      sweep<A>(columns_, [&](int64_t j, auto part) {
        const Vector<A> center = part.load(shift + j);
        Vector<A> sum = part.load(sums + j), square = part.load(squares + j);
#pragma GCC unroll 8
        for (int k = 0; k < count.value; ++k) {
          __builtin_prefetch(x + (k + count.value) * stride + j);
          const Vector<A> d = part.load(x + k * stride + j) - center;
          sum += d;
          square += d * d;
        }
        part.store(sums + j, sum);
        part.store(squares + j, square);
      });
      x += count.value * stride;
      rows -= count.value;
    };
    while (rows >= 8) block(std::integral_constant<int, 8>{});
    while (rows > 0) block(std::integral_constant<int, 1>{});
  }

  void flush() {
    if (pending_ == 0) return;
    A *shift = work_.data(), *sums = shift + columns_, *squares = sums + columns_;
    double *mean = moments_.data(), *square = mean + columns_;
    const double n = double(pending_), total = count_ + n, weight = n / total, cross = count_ * n / total;
    for (int64_t j = 0; j < columns_; ++j) {
      const double sum = sums[j], distance = double(shift[j]) + sum / n - mean[j];
      mean[j] += distance * weight;
      square[j] += double(squares[j]) - sum * sum / n + distance * distance * cross;
      shift[j] = A(mean[j]);
      sums[j] = squares[j] = 0;
    }
    count_ = total;
    pending_ = 0;
  }

  int64_t columns_, pending_ = 0;
  double count_ = 0;
  std::vector<A> work_;          // shift, sums, squares: an array each
  std::vector<double> moments_;  // means, squares
};

}  // namespace fastdl
