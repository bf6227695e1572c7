// What forward and backward of layer_norm and rms_norm share: the way through the rows, and sums over one.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <type_traits>
#include <vector>

#include "normalize.h"
#include "row_norm.h"

namespace fastdl {

// Where the rows of an operand are, counted up one by one: a division each row would take as long as a short row.
class RowPosition {
 public:
  RowPosition(int64_t row, int64_t inner) : outer_(row / inner), at_(row % inner), inner_(inner) {}

  template <class T>
  const T* of(const RowInput& input) const {
    return static_cast<const T*>(input.values) + outer_ * input.strides.outer + at_ * input.strides.inner;
  }
  void advance() {
    if (++at_ == inner_) {
      at_ = 0;
      ++outer_;
    }
  }

 private:
  int64_t outer_, at_, inner_;
};

// How far ahead of a row to read while it is worked on, in values: to the next row, but at least 3 KiB. The second pass over a row,
// which is in the cache by then, would leave the memory idle, and a row is too short for the processor's own prefetching, which
// begins anew with each page. Not so long rows, two of which would push each other out of the cache.
inline constexpr int64_t longest_fetched = 16384;  // bytes
template <class T>
int64_t values_ahead(const RowInput& input, int64_t width) {
  const int64_t bytes = width * int64_t(sizeof(T));
  return bytes > longest_fetched ? 0 : (1 + 3071 / bytes) * input.strides.inner;
}

// What memory of type T holds of a sum.
template <class T, class A = Arithmetic<T>>
FASTDL_INLINE Vector<A> rounded(Vector<A> value) {
  if constexpr (std::is_same_v<T, A>) {
    return value;
  } else if constexpr (std::is_same_v<T, BFloat16> && vector_bytes < 64) {
    // As narrow has it without AVX-512, but not through 16 bits and back.
    typedef uint32_t Bits __attribute__((vector_size(vector_bytes)));
    const Bits bits = (Bits)value;
    return (Vector<A>)((value == value ? bits + 0x7fff + ((bits >> 16) & 1) : bits | 0x400000) & 0xffff0000);
  } else {
    return widen(narrow(value, T{}), T{});
  }
}

// Of the cache that a core shares with others; 16 MiB where the system does not tell. sysconf adds up those of a whole processor:
// 384 MiB of an EPYC whose cores share 32.
inline int64_t last_level_cache_bytes() {
  static const int64_t bytes = [] {
    long long kibibytes = 0;
    if (FILE* file = std::fopen("/sys/devices/system/cpu/cpu0/cache/index3/size", "r")) {
      if (std::fscanf(file, "%lldK", &kibibytes) != 1) kibibytes = 0;
      std::fclose(file);
    }
    return kibibytes > 0 ? int64_t(kibibytes) << 10 : int64_t(16) << 20;
  }();
  return bytes;
}

// A result, row by row. Where the tensors that a pass goes through are more than the caches hold, it is stored past them: memory
// then need not be read before it is overwritten. Below that what reads the result next finds it there. LayerNorm in float32 with
// its results read at once, on two threads of Zen 5 with 32 MiB: the forward at (2, 1024, 1024) took 357 us with such stores and
// 286 us without, and of a sum 582 us and 503 us; forward and backward at (64, 50257), 12 MiB a tensor, 1.81 ms and 2.25 ms.
template <class T>
class RowOutput {
  using A = Arithmetic<T>;

 public:
  // Of `tensors` of one size that the pass reads and writes.
  RowOutput(void* values, int64_t rows, int64_t width, int tensors)
      : values_(static_cast<T*>(values)),
        width_(width),
        streams_(can_stream && tensors * rows * width * int64_t(sizeof(T)) > last_level_cache_bytes() &&
                 (width * sizeof(T) % 64 == 0 || width >= 1024) && reinterpret_cast<uintptr_t>(values) % 64 == 0) {}

  T* row(int64_t row) const { return values_ + row * width_; }

  // Calls body(offset, part) over a row that begins at `to`, such that whole vectors may be stored past the caches, which takes an
  // address that is a multiple of their size.
  template <class Body>
  FASTDL_INLINE void sweep_row(const T* to, Body&& body) const {
    int64_t head = 0;
    if constexpr (can_stream) {
      constexpr int64_t size = lanes<A> * sizeof(T);
      if (streams_) head = (size - int64_t(reinterpret_cast<uintptr_t>(to) % size)) % size / int64_t(sizeof(T));
      if (head) body(int64_t(0), First<A>{int(head)});
    }
    sweep<A>(width_ - head, [&](int64_t i, auto part) FASTDL_INLINE_LAMBDA { body(i + head, part); });
  }

  template <class Part>
  FASTDL_INLINE void store(Part part, T* to, Vector<A> value) const {
    if constexpr (can_stream && std::is_same_v<Part, Whole<A>>) {
      if (streams_) return stream(to, value);
    }
    part.store(to, value);
  }
  // Brings a place that is to be written into the cache.
  FASTDL_INLINE void fetch(const T* to) const {
    if (!streams_) __builtin_prefetch(to, 1);
  }
  // To be called by the thread that stored, before another one may read.
  static void finish() {
#if defined(__x86_64__)
    _mm_sfence();
#endif
  }

 private:
#if defined(__x86_64__)
  static constexpr bool can_stream = lanes<A> * sizeof(T) >= 16;
  static FASTDL_INLINE void stream(T* to, Vector<A> value) {
    if constexpr (sizeof(T) == 2) stream_bytes(to, narrow(value, T{}));
    else stream_bytes(to, value);
  }
  template <class Bytes>
  static FASTDL_INLINE void stream_bytes(T* to, Bytes bytes) {
#if FASTDL_AVX512
    if constexpr (sizeof(Bytes) == 64) return _mm512_stream_si512(reinterpret_cast<__m512i*>(to), (__m512i)bytes);
#endif
#if FASTDL_AVX512 || FASTDL_AVX2
    if constexpr (sizeof(Bytes) == 32) return _mm256_stream_si256(reinterpret_cast<__m256i*>(to), (__m256i)bytes);
#endif
    if constexpr (sizeof(Bytes) == 16) _mm_stream_si128(reinterpret_cast<__m128i*>(to), (__m128i)bytes);
  }
#else
  static constexpr bool can_stream = false;
  static void stream(T*, Vector<A>) {}
#endif

  T* values_;
  int64_t width_;
  bool streams_;
};

// totals = the sums over n values of what body(offset, part, sums) adds to `count` vectors of sums. Four sets of these go on side
// by side, as an addition must wait for the one before; and each takes at most 16 addends, lest the sums grow so large that the
// addends are rounded away: a row of 50,257 values has 785 for each lane of each set.
template <int count, class A, class Body>
FASTDL_INLINE void accumulate(int64_t n, A (&totals)[count], Body&& body) {
  constexpr int64_t width = lanes<A>, step = 4 * width, most = 16 * step;
  Vector<A> total[count] = {};
  for (int64_t start = 0; start < n; start += most) {
    Vector<A> sums[4][count] = {};
    const int64_t end = n - start < most ? n : start + most;
    int64_t i = start;
    for (; i + step <= end; i += step) {
#pragma GCC unroll 4
      for (int k = 0; k < 4; ++k) body(i + k * width, Whole<A>{}, sums[k]);
    }
    for (; i + width <= end; i += width) body(i, Whole<A>{}, sums[0]);
    if (i < end) body(i, First<A>{int(end - i)}, sums[1]);
    for (int k = 0; k < count; ++k) total[k] += (sums[0][k] + sums[1][k]) + (sums[2][k] + sums[3][k]);
  }
  for (int k = 0; k < count; ++k) totals[k] = sum_lanes<A>(total[k]);
}

// A parameter as given, or `width` times the value that leaves the result as it is.
template <class A>
class RowParameter {
 public:
  RowParameter(const void* given, int64_t width, A neutral) : values_(static_cast<const A*>(given)) {
    if (values_) return;
    made_.assign(width, neutral);
    values_ = made_.data();
  }
  operator const A*() const { return values_; }

 private:
  std::vector<A> made_;
  const A* values_;
};

}  // namespace fastdl
