// Count, mean and sum of squared deviations of some values, and their merging within a block and a cluster.
//
// The mean is kept as two floats: at a mean of 1e4 one alone is off by 5e-4. Squares are of deviations from a mean of the same
// values, so nothing cancels; parts are joined by Chan's formula (Chan, Golub & LeVeque 1979).
#pragma once

#include "device.cuh"

namespace fastdl::cuda {

struct Moments {
  float count, high, low, squares;  // the mean is high + low
};

__device__ __forceinline__ Moments merge(const Moments& a, const Moments& b) {
  if (a.count == 0.0f) return b;
  if (b.count == 0.0f) return a;
  const float count = a.count + b.count, share = b.count / count;
  const float distance = (b.high - a.high) + (b.low - a.low), move = a.low + distance * share;
  // Knuth's exact sum of two floats: a.high may be far off, from an outlier, and what is left over in low must stay small.
  const float high = a.high + move, part = high - a.high, low = (a.high - (high - part)) + (move - part);
  return {count, high, low, a.squares + b.squares + distance * distance * (a.count * share)};
}

// Lane 0 has the result.
__device__ __forceinline__ Moments merge_warp(Moments m) {
  for (int distance = 16; distance > 0; distance /= 2)
    m = merge(m, {device::shuffle_down(m.count, distance), device::shuffle_down(m.high, distance),
                  device::shuffle_down(m.low, distance), device::shuffle_down(m.squares, distance)});
  return m;
}

__device__ __forceinline__ Moments from_lane_0(const Moments& m) {
  return {device::shuffle(m.count, 0), device::shuffle(m.high, 0), device::shuffle(m.low, 0), device::shuffle(m.squares, 0)};
}

// All threads have the result. scratch: 32 of them, used for nothing else since the last barrier.
__device__ __forceinline__ Moments merge_block(Moments m, Moments* scratch) {
  const int lane = threadIdx.x % 32, warps = blockDim.x / 32;
  m = merge_warp(m);
  if (warps == 1) return from_lane_0(m);
  if (lane == 0) scratch[threadIdx.x / 32] = m;
  device::block_barrier();
  return from_lane_0(merge_warp(lane < warps ? scratch[lane] : Moments{0.0f, 0.0f, 0.0f, 0.0f}));
}

// 1 / sqrt(variance + eps), with a step of Newton's method against the rounding of the square root and of the division.
__device__ __forceinline__ float reciprocal_root(float variance, float eps) {
  const float v = variance + eps, r = 1.0f / sqrtf(v);
  const float rest = fmaf(-v * r, r, 1.0f);
  return fabsf(rest) < 1e-3f ? fmaf(0.5f * r, rest, r) : r;  // not where r is 0, infinite or NaN
}

// The mean in two floats, the second what the first lacks, and 1 / deviation.
struct Center {
  float high, low, reciprocal_deviation;
};

__device__ __forceinline__ Center center_of(const Moments& m, float eps) {
  return {m.high, m.low, reciprocal_root(m.squares / m.count, eps)};
}

__device__ __forceinline__ Center center_of(double mean, double variance, float eps) {
  const float high = float(mean);
  return {high, float(mean - double(high)), reciprocal_root(float(variance), eps)};
}

// Two sums at once: of gradients, and of gradients times normalised values.
struct Sums {
  double gradient, product;
};

// All threads have the result. scratch: 32 of them, used for nothing else since the last barrier.
__device__ __forceinline__ Sums sum_block(Sums s, Sums* scratch) {
  const int lane = threadIdx.x % 32, warps = blockDim.x / 32;
  for (int step = 16; step > 0; step /= 2) {
    s.gradient += device::shuffle_xor(s.gradient, step);
    s.product += device::shuffle_xor(s.product, step);
  }
  if (warps == 1) return s;
  if (lane == 0) scratch[threadIdx.x / 32] = s;
  device::block_barrier();
  s = lane < warps ? scratch[lane] : Sums{0.0, 0.0};
  for (int step = 16; step > 0; step /= 2) {
    s.gradient += device::shuffle_xor(s.gradient, step);
    s.product += device::shuffle_xor(s.product, step);
  }
  return s;
}

}  // namespace fastdl::cuda
