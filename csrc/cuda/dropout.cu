// Dropout and the residual that it is added to, in one pass; its backward is the same on the gradient, without a residual. Three
// kernels: rows of whole octets, whose threads have the values that they choose for; values in any other order, whose choices pass
// through shared memory as bits; and channels_last, where a thread chooses for eight positions of a vector of channels.
#include "dropout.cuh"
#include "dropout.h"

namespace fastdl::cuda {
namespace dropout {

// Row and octet of a call of Philox in contiguous rows.
struct Place {
  int64_t row;
  uint32_t octet;

  __device__ __forceinline__ Place(const Call& call, int64_t index)
      : row(divide(call, index, call.octets)), octet(uint32_t(index - row * call.octets)) {}

  // By as many calls as a block has threads.
  __device__ __forceinline__ void advance(const Call& call) {
    row += call.step_rows;
    octet += call.step_octets;
    if (octet >= call.octets) {
      octet -= call.octets;
      ++row;
    }
  }
};

// Contiguous rows of whole octets, each value at a multiple of its vector's size.
template <class T, bool has_residual>
__global__ void __launch_bounds__(threads) dense(const Call call) {
  constexpr int V = full_vector<T>, vectors_a_call = 8 / V;
  const int64_t block = call.first_block + blockIdx.x, first = block * block_values<T> + int64_t(threadIdx.x) * V;
  const T *const input = static_cast<const T*>(call.input) + first, *const residual = static_cast<const T*>(call.residual) + first;
  T* const output = static_cast<T*>(call.output) + first;
  const auto is_inside = [&](int vector) { return first + vector * threads * V < call.values; };
  Held<T, V> x[vectors], r[vectors];
#pragma unroll
  for (int i = 0; i < vectors; ++i) {
    if (!is_inside(i)) continue;
    x[i] = load<T, V>(input + i * threads * V);
    if constexpr (has_residual) r[i] = load<T, V>(residual + i * threads * V);
  }
  const auto finish = [&](int i, auto kept) {
    if (is_inside(i)) store<T, V>(output + i * threads * V, apply<has_residual, T, V>(x[i], r[i], call.scale, kept));
  };

  const Key key = key_of(call);
  // In float32 two lanes have an octet together. Each makes one of two calls, and they exchange the choices.
  const int half = vectors_a_call == 1 ? 0 : int(threadIdx.x) % 2;
  const int lane = vectors_a_call == 1 ? int(threadIdx.x) : int(threadIdx.x) / 2 + half * (threads / 2);
  Place place(call, block * (block_values<T> / 8) + lane);
#pragma unroll
  for (int i = 0; i < vectors; i += vectors_a_call) {
    uint32_t words[4];
    choose(key, place.octet, place.row, words);
    place.advance(call);
    if constexpr (vectors_a_call == 1) {
      finish(i, [&](int j) { return is_kept(words, j, call.threshold); });
    } else {
      const uint32_t own = kept_bits(words, call.threshold), other = device::shuffle_xor(own, 1);
      const uint32_t first_bits = (half ? other : own) >> (4 * half), second_bits = (half ? own : other) >> (4 * half);
      finish(i, [&](int j) { return (first_bits >> j & 1u) != 0; });
      finish(i + 1, [&](int j) { return (second_bits >> j & 1u) != 0; });
    }
  }
}

// Sets the bits of `choices` from bit `at` on, which may lie before the first and behind the last.
template <int words>
__device__ __forceinline__ void set_bits(unsigned (&kept)[words], int at, unsigned choices) {
  if (at < 0) {
    choices >>= -at;
    at = 0;
  }
  const int word = at / 32, shift = at % 32;
  const unsigned next = shift > 24 ? choices >> (32 - shift) : 0u;
  if (choices << shift) atomicOr(&kept[word], choices << shift);
  if (next && word + 1 < words) atomicOr(&kept[word + 1], next);
}

// Any order: a block has values that follow one another in memory, and makes all calls that decide for some of them.
template <class T, int V, bool has_residual>
__global__ void __launch_bounds__(threads) packed(const Call call) {
  constexpr int values = block_values<T>, words = values / 32, rounds = values / (threads * vectors * V);
  STATIC_SHARED(unsigned, kept, [words]);
  if (threadIdx.x < words) kept[threadIdx.x] = 0;
  const int64_t first = (call.first_block + blockIdx.x) * values, left = call.values - first;
  const int count = left < values ? int(left) : values;
  const T *const input = static_cast<const T*>(call.input) + first, *const residual = static_cast<const T*>(call.residual) + first;
  T* const output = static_cast<T*>(call.output) + first;
  const auto place_of = [&](int round, int i) { return ((round * vectors + i) * threads + int(threadIdx.x)) * V; };
  Held<T, V> x[vectors], r[vectors];
  const auto load_round = [&](int round) {
#pragma unroll
    for (int i = 0; i < vectors; ++i) {
      const int at = place_of(round, i);
      if (at + V > count) continue;
      x[i] = load<T, V>(input + at);
      if constexpr (has_residual) r[i] = load<T, V>(residual + at);
    }
  };
  load_round(0);
  device::block_barrier();

  // The calls, from the first value's octet of its line to the last one's, all channels of an octet side by side.
  const Key key = key_of(call);
  const int channels = int(call.channels);
  const int64_t line_values = call.width * channels, first_line = divide(call, first, line_values);
  const int64_t begin = first - first_line * line_values;
  const uint32_t first_octet = uint32_t(divide(call, begin, 8 * channels));
  const int64_t last = first + count - 1, last_line = divide(call, last, line_values);
  const int64_t last_octet = divide(call, last - last_line * line_values, 8 * channels);
  const int calls = int((last_line - first_line) * call.octets + last_octet - first_octet + 1) * channels;
#pragma unroll 1
  for (int i = int(threadIdx.x); i < calls; i += threads) {
    const int octets_along = channels == 1 ? i : i / channels, channel = i - octets_along * channels;
    const uint32_t along = first_octet + uint32_t(octets_along), down = along / call.octets, octet = along - down * call.octets;
    int64_t row = first_line + down;
    if (channels > 1) {
      const int64_t sample = divide(call, row, call.lines);
      row += (sample * (channels - 1) + channel) * call.lines;
    }
    uint32_t decisions[4];
    choose(key, octet, row, decisions);
    unsigned bits = kept_bits(decisions, call.threshold);
    const int64_t rest = call.width - int64_t(octet) * 8;
    if (rest < 8) bits &= (1u << int(rest)) - 1u;
    const int at = int(int64_t(down) * line_values + int64_t(octet) * 8 * channels + channel - begin);
    if (channels == 1) {
      set_bits(kept, at, bits);
    } else {
#pragma unroll
      for (int j = 0; j < 8; ++j) {
        const int bit = at + j * channels;
        if (bits >> j & 1u && bit >= 0 && bit < values) atomicOr(&kept[bit / 32], 1u << bit % 32);
      }
    }
  }
  device::block_barrier();

#pragma unroll 1
  for (int round = 0; round < rounds; ++round) {
    if (round > 0) load_round(round);
#pragma unroll
    for (int i = 0; i < vectors; ++i) {
      const int at = place_of(round, i);
      const auto choices_from = [&](int value) {
        return [bits = kept[value / 32] >> value % 32](int j) { return (bits >> j & 1u) != 0; };
      };
      if (at + V <= count) {
        store<T, V>(output + at, apply<has_residual, T, V>(x[i], r[i], call.scale, choices_from(at)));
        continue;
      }
      // The tensor's last values, if they are no whole vector.
#pragma unroll 1
      for (int j = at; j < count; ++j) {
        Held<T, 1> single = load<T, 1>(input + j), added{};
        if constexpr (has_residual) added = load<T, 1>(residual + j);
        store<T, 1>(output + j, apply<has_residual, T, 1>(single, added, call.scale, choices_from(j)));
      }
    }
  }
}

// Channels innermost: a thread has eight positions of a line, of V channels.
template <class T, int V, bool has_residual>
__global__ void __launch_bounds__(threads) channels_last(const Call call) {
  const int64_t index = (call.first_block + blockIdx.x) * threads + threadIdx.x, packs = call.channels / V;
  const int64_t octets = divide(call, index, packs), channel = (index - octets * packs) * V;
  const int64_t line = divide(call, octets, call.octets), sample = divide(call, line, call.lines);
  const uint32_t octet = uint32_t(octets - line * call.octets);
  const int64_t first = (line * call.width + int64_t(octet) * 8) * call.channels + channel;
  if (first >= call.values) return;
  const T *const input = static_cast<const T*>(call.input) + first, *const residual = static_cast<const T*>(call.residual) + first;
  T* const output = static_cast<T*>(call.output) + first;
  const int64_t rest = call.width - int64_t(octet) * 8;
  const int positions = rest < 8 ? int(rest) : 8;
  Held<T, V> x[8], r[8];
#pragma unroll
  for (int j = 0; j < 8; ++j) {
    if (j >= positions) continue;
    x[j] = load<T, V>(input + j * call.channels);
    if constexpr (has_residual) r[j] = load<T, V>(residual + j * call.channels);
  }

  // Bit j V + i is position j of channel i.
  uint32_t kept[V == 8 ? 2 : 1] = {};
  const Key key = key_of(call);
  int64_t row = (sample * (call.channels - 1) + channel) * call.lines + line;
#pragma unroll 2
  for (int i = 0; i < V; ++i, row += call.lines) {
    uint32_t words[4];
    choose(key, octet, row, words);
#pragma unroll
    for (int j = 0; j < 8; ++j) kept[j * V / 32] |= uint32_t(is_kept(words, j, call.threshold)) << (j * V % 32 + i);
  }
#pragma unroll
  for (int j = 0; j < 8; ++j) {
    if (j >= positions) continue;
    const uint32_t bits = kept[j * V / 32] >> (j * V % 32);
    store<T, V>(output + j * call.channels,
                apply<has_residual, T, V>(x[j], r[j], call.scale, [&](int i) { return (bits >> i & 1u) != 0; }));
  }
}

enum class Kernel { dense, packed, channels_last };

struct Plan {
  Kernel kernel;
  bool vector;
  int64_t blocks;
};

int64_t values_of(const DropoutCall& call) { return call.samples * call.channels * call.lines * call.width; }

Plan plan_of(const DropoutCall& call) {
  const int full = call.dtype == Dtype::float32 ? full_vector<float> : full_vector<half_bits>;
  const uintptr_t addresses = reinterpret_cast<uintptr_t>(call.input) | reinterpret_cast<uintptr_t>(call.residual) |
                              reinterpret_cast<uintptr_t>(call.output);
  const bool aligned = addresses % 16 == 0;
  const int64_t values = values_of(call);
  // Below as many channels a warp would reach several sectors for a few values of each.
  constexpr int few_channels = 32;
  if (call.channels > 1) {
    const bool vector = aligned && call.channels % full == 0;
    if (vector || call.channels >= few_channels) {
      const int64_t packs = call.samples * call.lines * ((call.width + 7) / 8) * (call.channels / (vector ? full : 1));
      return {Kernel::channels_last, vector, (packs + threads - 1) / threads};
    }
  }
  const int64_t of_block = threads * vectors * full;
  const bool dense = call.channels == 1 && call.width % 8 == 0 && aligned;
  return {dense ? Kernel::dense : Kernel::packed, aligned, (values + of_block - 1) / of_block};
}

template <class T, bool has_residual>
void (*kernel_of(const Plan& plan))(const Call) {
  constexpr int full = full_vector<T>;
  switch (plan.kernel) {
    case Kernel::dense: return dense<T, has_residual>;
    case Kernel::packed: return plan.vector ? packed<T, full, has_residual> : packed<T, 1, has_residual>;
    default: return plan.vector ? channels_last<T, full, has_residual> : channels_last<T, 1, has_residual>;
  }
}

template <class T>
int launch(const Plan& plan, Call call, const DropoutBlocks& part, void* stream) {
  const auto kernel = call.residual ? kernel_of<T, true>(plan) : kernel_of<T, false>(plan);
  const int64_t end = part.end < plan.blocks ? part.end : plan.blocks, most = int64_t(1) << 30;
  for (call.first_block = part.first; call.first_block < end; call.first_block += most) {
    const int64_t rest = end - call.first_block;
    const dim3 grid(unsigned(rest < most ? rest : most));
    const int status = device::launch(kernel, grid, dim3(threads), 0, static_cast<device::Stream>(stream), call);
    if (status != 0) return status;
  }
  return 0;
}

}  // namespace dropout

int64_t dropout_blocks(const DropoutCall& call) { return dropout::plan_of(call).blocks; }

int dropout_forward(const DropoutCall& given, void* stream, const DropoutBlocks& part) {
  using namespace dropout;
  const int64_t values = values_of(given), octets = (given.width + 7) / 8;
  if (values == 0) return 0;
  if (octets > int64_t(1) << 31) return 1;  // cudaErrorInvalidValue: the counter has 32 bits for them
  Call call{};
  call.input = given.input;
  call.residual = given.residual;
  call.output = given.output;
  call.seed = given.seed;
  call.seed_on_device = given.seed_on_device;
  call.threshold = uint32_t(given.dropped) << 16;
  call.scale = given.dropped < 65536 ? 65536.0f / float(65536 - given.dropped) : 0.0f;
  call.values = values;
  // A line is a row where there is one channel.
  call.lines = given.channels == 1 ? 1 : given.lines;
  call.width = given.width;
  call.channels = given.channels;
  call.octets = uint32_t(octets);
  call.step_rows = threads / call.octets;
  call.step_octets = threads % call.octets;
  // With room for the last block's threads that have nothing.
  call.narrow = values < int64_t(1) << 31;
  const Plan plan = plan_of(given);
  switch (given.dtype) {
    case Dtype::bfloat16: return launch<bfloat16_bits>(plan, call, part, stream);
    case Dtype::float16: return launch<half_bits>(plan, call, part, stream);
    default: return launch<float>(plan, call, part, stream);
  }
}

}  // namespace fastdl::cuda
