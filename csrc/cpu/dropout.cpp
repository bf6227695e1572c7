// Dropout and the residual that it is added to, in one pass; its backward is the same on the gradient, without a residual.
#include "dropout.h"

#include <algorithm>

#include "normalize.h"
#include "philox.h"

namespace fastdl {
namespace {

template <class T, bool has_residual>
class DropoutPass {
  using A = Arithmetic<T>;
  using V = Vector<A>;
  using I = Integer<float>;

 public:
  explicit DropoutPass(const Dropout& call)
      : call_(call),
        x_(static_cast<const T*>(call.input)),
        r_(static_cast<const T*>(call.residual)),
        y_(static_cast<T*>(call.output)),
        octets_((call.width + 7) / 8),
        kept_(call.dropped < 65536 ? A(65536.0 / (65536 - call.dropped)) : A(0)) {}

  void run() const {
    if (call_.channels == 1) rows();
    else channels_last();
  }

 private:
  // Contiguous rows, whose calls of Philox are counted up through all of them: short rows share a batch.
  void rows() const {
    const int64_t calls = call_.samples * call_.lines * octets_;
    constexpr int64_t unit = 64 * philox_calls;
    parallel((calls + unit - 1) / unit, unit * 8, [&](int64_t i) {
      const int64_t begin = i * unit, end = std::min(calls, begin + unit);
      // Without ragged rows the choices of all calls are one run, which begins at a multiple of 128 values.
      if (call_.width % 8 == 0) batches<true>(begin, end);
      else batches<false>(begin, end);
    });
  }

  template <bool dense>
  void batches(int64_t begin, int64_t end) const {
    int64_t row = begin / octets_, octet = begin % octets_, first = row * call_.width + 8 * octet;
    for (int64_t call = begin; call < end; call += philox_calls) {
      PhiloxWords words;
      A factors[philox_choices], packed[philox_choices];
      uint32_t rows_down[philox_calls];  // of each call, from the batch's first one
      count_along_rows(octet, row, words, rows_down);
      philox_octets<dense>(words, octet, rows_down, factors, packed);
      octet += philox_calls;
      if (octet >= octets_) {
        row += octet / octets_;
        octet %= octets_;
      }
      const int64_t last = std::min(row * call_.width + 8 * octet, call_.samples * call_.lines * call_.width);
      apply(first, last - first, dense ? factors : packed);
      first = last;
    }
  }

  // The counters of calls that follow one another, from `octet` of `row` on. Vectors, since words that are stored one by one and
  // loaded together would each have to reach the cache first: it took as long as all the rounds.
  FASTDL_INLINE void count_along_rows(int64_t octet, int64_t row, PhiloxWords& words, uint32_t* rows_down) const {
    const bool carries = uint32_t(row) > 0xffffffffu - philox_calls;
    for (int i = 0; i < philox_calls; i += lanes<float>) {
      const I place = int32_t(octet) + first_numbers() + i;
      // place / octets_: place is below 32 where it can be more than 1, and the quotient then exact.
      const I down = octets_ < philox_calls ? (place * int32_t(65536 / octets_ + 1)) >> 16 : -(place >= int32_t(octets_));
      store(words.word[0] + i, place - down * int32_t(octets_));
      store(words.word[1] + i, int32_t(uint32_t(row)) + down);
      store(words.word[2] + i, I{} + int32_t(uint64_t(row) >> 32));
      store(words.word[3] + i, I{});
      store(rows_down + i, down);
    }
    if (!carries) return;
    for (int i = 0; i < philox_calls; ++i) words.word[2][i] = uint32_t(uint64_t(row + rows_down[i]) >> 32);
  }

  template <bool dense>
  FASTDL_INLINE void philox_octets(PhiloxWords& words, int64_t octet, const uint32_t* rows_down, A* factors, A* packed) const {
    int64_t places[philox_calls];
    if constexpr (!dense)
      for (int i = 0; i < philox_calls; ++i) places[i] = rows_down[i] * call_.width + 8 * (int64_t(words.word[0][i]) - octet);
    philox(call_.seed, words);
    factors_by_call(words, call_.dropped, kept_, factors);
    // What a row's last call decides beyond its end is overwritten by the next row's first one.
    if constexpr (!dense)
      for (int i = 0; i < philox_calls; ++i) std::copy_n(factors + 8 * i, 8, packed + places[i]);
  }

  // Images whose channels are innermost: calls of neighbouring channels side by side, each for eight positions of a line.
  void channels_last() const {
    const int64_t channels = call_.channels, width = call_.width;
    parallel(call_.samples * call_.lines, width * channels, [&](int64_t i) {
      const int64_t sample = i / call_.lines, line = i % call_.lines;
      for (int64_t octet = 0; octet < octets_; ++octet)
        for (int64_t channel = 0; channel < channels; channel += philox_calls) {
          PhiloxWords words;
          count_along_channels(octet, (sample * channels + channel) * call_.lines + line, words);
          philox(call_.seed, words);
          A factors[philox_choices];
          factors_by_choice(words, call_.dropped, kept_, factors);
          const int64_t positions = std::min<int64_t>(8, width - 8 * octet);
          const int64_t count = std::min<int64_t>(philox_calls, channels - channel);
          for (int64_t j = 0; j < positions; ++j)
            apply((i * width + 8 * octet + j) * channels + channel, count, factors + philox_calls * j);
        }
    });
  }

  FASTDL_INLINE void count_along_channels(int64_t octet, int64_t row, PhiloxWords& words) const {
    for (int i = 0; i < philox_calls; i += lanes<float>) {
      store(words.word[0] + i, I{} + int32_t(octet));
      store(words.word[1] + i, int32_t(uint32_t(row)) + (first_numbers() + i) * int32_t(call_.lines));
      store(words.word[2] + i, I{} + int32_t(uint64_t(row) >> 32));
      store(words.word[3] + i, I{});
    }
    if ((row + (philox_calls - 1) * call_.lines) >> 32 == row >> 32) return;
    for (int i = 0; i < philox_calls; ++i) words.word[2][i] = uint32_t(uint64_t(row + i * call_.lines) >> 32);
  }

  static FASTDL_INLINE I first_numbers() { return __builtin_convertvector(load_vector(lane_numbers<float>), I); }
  static FASTDL_INLINE void store(uint32_t* to, I values) { std::memcpy(to, &values, sizeof values); }

  FASTDL_INLINE void apply(int64_t first, int64_t count, const A* factors) const {
    const T *x = x_ + first, *r = has_residual ? r_ + first : nullptr;
    T* y = y_ + first;
    sweep<A>(count, [&](int64_t i, auto part) FASTDL_INLINE_LAMBDA {
      V value = part.load(x + i) * part.load(factors + i);
      if constexpr (has_residual) value += part.load(r + i);
      part.store(y + i, value);
    });
  }

  const Dropout& call_;
  const T *const x_, *const r_;
  T* const y_;
  const int64_t octets_;
  const A kept_;
};

}  // namespace

void dropout_forward(const Dropout& call) {
  with_dtype(call.dtype, [&](auto t) {
    using T = decltype(t);
    if (call.residual) DropoutPass<T, true>(call).run();
    else DropoutPass<T, false>(call).run();
  });
}

}  // namespace fastdl
