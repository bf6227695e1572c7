// Every shuffle, vote and match, each thread's result written where the test compares it.
#include "device.cuh"
#include "simt/case.h"

namespace exchange {
using namespace fastdl::device;

template <class T>
__global__ void shuffles(T* out, const T* in, int by) {
  const unsigned at = threadIdx.x, n = blockDim.x;
  const T value = in[at];
  out[at] = shuffle(value, by);
  out[n + at] = shuffle_xor(value, by);
  out[2 * n + at] = shuffle_down(value, unsigned(by));
  out[3 * n + at] = shuffle_up(value, unsigned(by));
  // Two halves of a warp, each by itself and at the same place, at different times.
  const unsigned half = at % 32 < 16 ? 0x0000ffffu : 0xffff0000u;
  for (unsigned round = 0; round < 1 + at % 32 / 16; ++round) out[4 * n + at] = shuffle_xor(value, by & 15, half);
}

__global__ void votes(unsigned* out, const int* in) {
  const unsigned at = threadIdx.x, n = blockDim.x;
  const int value = in[at];
  out[at] = ballot_lanes(value > 0);
  out[n + at] = any_lane(value > 2) ? 1 : 0;
  out[2 * n + at] = all_lanes(value > -3) ? 1 : 0;
  out[3 * n + at] = match_any(value);
  out[4 * n + at] = match_any((long long)(value) << 33);
  out[5 * n + at] = elect_one() ? 1 : 0;
  const unsigned odd = 0xaaaaaaaau;
  out[6 * n + at] = at % 2 == 1 ? ballot_lanes(value > 0, odd) : 0;
}

// Barriers of a part of the block: the first half writes what the second half reads, and the other way round.
__global__ void named(float* out, const float* in) {
  STATIC_SHARED(float, staged, [128]);
  STATIC_SHARED(float, back, [64]);
  if (threadIdx.x < 64) {
    staged[threadIdx.x] = in[threadIdx.x];
    named_barrier_arrive(1, 128);
    named_barrier(2, 128);
    out[threadIdx.x] = back[63 - threadIdx.x];
  } else {
    named_barrier(1, 128);
    const float value = 2 * staged[threadIdx.x - 64];
    back[threadIdx.x - 64] = value;
    named_barrier_arrive(2, 128);
    named_barrier(3, 64);
    out[threadIdx.x] = value + back[(threadIdx.x + 1) % 64];
  }
}

__global__ void atomics(unsigned* out, const unsigned* in) {
  const unsigned value = in[blockIdx.x * blockDim.x + threadIdx.x];
  atomicAdd(out, value);
  atomicMax(out + 1, value);
  atomicMin(out + 2, value);
  atomicOr(out + 3, value);
  atomicXor(out + 4, value);
  atomicInc(out + 5, 9u);
  atomicAdd(reinterpret_cast<unsigned long long*>(out + 6), (unsigned long long)(value) << 20);
  unsigned seen = 0;
  while (atomicCAS(out + 8, seen, seen + value) != seen) seen = atomicAdd(out + 8, 0u);
}
}  // namespace exchange

SIMT_CASE(shuffles_float) {
  c.check(fastdl::device::launch(exchange::shuffles<float>, 1, unsigned(c.integer("threads")), 0, nullptr, c.array<float>("out"),
                                 c.array<const float>("in"), int(c.integer("by"))));
}
SIMT_CASE(shuffles_double) {
  c.check(fastdl::device::launch(exchange::shuffles<double>, 1, unsigned(c.integer("threads")), 0, nullptr, c.array<double>("out"),
                                 c.array<const double>("in"), int(c.integer("by"))));
}
SIMT_CASE(shuffles_long) {
  c.check(fastdl::device::launch(exchange::shuffles<long long>, 1, unsigned(c.integer("threads")), 0, nullptr,
                                 c.array<long long>("out"), c.array<const long long>("in"), int(c.integer("by"))));
}
SIMT_CASE(votes) {
  c.check(fastdl::device::launch(exchange::votes, 1, 64, 0, nullptr, c.array<unsigned>("out"), c.array<const int>("in")));
}
SIMT_CASE(named_barriers) {
  c.check(fastdl::device::launch(exchange::named, 1, 128, 0, nullptr, c.array<float>("out"), c.array<const float>("in")));
}
SIMT_CASE(atomics) {
  c.check(fastdl::device::launch(exchange::atomics, 3, 64, 0, nullptr, c.array<unsigned>("out"), c.array<const unsigned>("in")));
}
