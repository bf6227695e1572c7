// The two matrix products of attention on tensor cores, by one warp with 16 rows: rows times rows, and weights times rows.
//
// Half precision multiplies by mma.m16n8k16. float32 multiplies in three steps of TF32, the high parts and both mixed products of a
// = a_high + a_low, which keeps 22 bits of 24; TF32 alone would keep 11.
#pragma once

#include "attention_sizes.h"
#include "attention_tiles.cuh"

namespace fastdl::cuda {

// Values along the summed dimension of one instruction.
template <class T>
inline constexpr int depth = 32 / int(sizeof(T));

// Features of a kernel's sums.
template <class T, int D>
inline constexpr int summed = attention_summed(sizeof(T) == 4, D);

// The left operand of one instruction: 16 rows.
template <class T>
struct Left {
  uint32_t values[4];
};
template <>
struct Left<float> {
  uint32_t values[4], low[4];
};

// What TF32 leaves of a value; nothing of infinity, which would become NaN.
__device__ __forceinline__ uint32_t tf32_rest(float value, uint32_t high) {
  const bool finite = (high & 0x7f800000u) != 0x7f800000u;
  return device::to_tf32(finite ? value - __uint_as_float(high) : 0.0f);
}

__device__ __forceinline__ void split(Left<float>& left) {
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const float value = __uint_as_float(left.values[i]);
    left.values[i] = device::to_tf32(value);
    left.low[i] = tf32_rest(value, left.values[i]);
  }
}

template <class T>
__device__ __forceinline__ void multiply(float (&d)[4], const Left<T>& left, uint32_t right_0, uint32_t right_1) {
  if constexpr (sizeof(T) == 2) {
    const uint32_t right[2] = {right_0, right_1};
    device::mma_m16n8k16<T>(d, left.values, right);
  } else {
    const float a = __uint_as_float(right_0), b = __uint_as_float(right_1);
    const uint32_t high[2] = {device::to_tf32(a), device::to_tf32(b)};
    const uint32_t low[2] = {tf32_rest(a, high[0]), tf32_rest(b, high[1])};
    // The unit may cut what it adds up instead of rounding it; a sum of eight products loses little by that, and long sums are made
    // by additions that round.
    float sum[4] = {0.0f, 0.0f, 0.0f, 0.0f};
    device::mma_m16n8k8_tf32(sum, left.low, low);
    device::mma_m16n8k8_tf32(sum, left.low, high);
    device::mma_m16n8k8_tf32(sum, left.values, low);
    device::mma_m16n8k8_tf32(sum, left.values, high);
#pragma unroll
    for (int e = 0; e < 4; ++e) d[e] += sum[e];
  }
}

// d += a b^T, where a is 16 rows and b is N rows of D values in shared memory.
template <class T, int D, int N>
__device__ __forceinline__ void multiply_rows(float (&d)[N / 8][4], const T* a, const T* b) {
  constexpr int chunk = 16 / sizeof(T);
  const int lane = int(threadIdx.x % 32);
  const T* const from_a = a + lane % 16 * pitch<T, D> + lane / 16 * chunk;
  const T* const from_b = b + (lane % 8 + lane / 16 * 8) * pitch<T, D> + lane / 8 % 2 * chunk;
  // Further unrolled the operands of several steps are loaded ahead, for which wide kernels have no registers.
  [[maybe_unused]] constexpr int steps_at_once = sizeof(T) == 4 ? 1 : D > 96 ? 2 : 4;
#pragma unroll steps_at_once
  for (int k = 0; k < D; k += depth<T>) {
    Left<T> left;
    device::ldmatrix<4>(left.values, from_a + k);
    if constexpr (sizeof(T) == 4) split(left);
#pragma unroll
    for (int n = 0; n < N; n += 16) {
      uint32_t right[4];
      device::ldmatrix<4>(right, from_b + n * pitch<T, D> + k);
      multiply<T>(d[n / 8], left, right[0], right[1]);
      multiply<T>(d[n / 8 + 1], left, right[2], right[3]);
    }
  }
}

// The accumulators of columns [depth step, depth (step + 1)) as a left operand. In float32 the columns come in another order (0, 2,
// 4, 6, 1, 3, 5, 7), in which multiply_weights takes the rows of b too: no value changes its thread.
template <class T, int count>
__device__ __forceinline__ Left<T> weights_of(const float (&p)[count][4], int step) {
  Left<T> left;
  if constexpr (sizeof(T) == 2) {
    const float (&low)[4] = p[2 * step], (&high)[4] = p[2 * step + 1];
    left.values[0] = device::narrow_pair<T>(low[0], low[1]);
    left.values[1] = device::narrow_pair<T>(low[2], low[3]);
    left.values[2] = device::narrow_pair<T>(high[0], high[1]);
    left.values[3] = device::narrow_pair<T>(high[2], high[3]);
  } else {
    left.values[0] = __float_as_uint(p[step][0]);
    left.values[1] = __float_as_uint(p[step][2]);
    left.values[2] = __float_as_uint(p[step][1]);
    left.values[3] = __float_as_uint(p[step][3]);
    split(left);
  }
  return left;
}

// d += p b, where p is 16 rows of N weights in accumulators, and b is W of the values of N rows of D in shared memory.
template <class T, int D, int N, int W = D>
__device__ __forceinline__ void multiply_weights(float (&d)[W / 8][4], const float (&p)[N / 8][4], const T* b) {
  const int lane = int(threadIdx.x % 32);
#pragma unroll
  for (int step = 0; step < N / depth<T>; ++step) {
    const Left<T> left = weights_of<T>(p, step);
    if constexpr (sizeof(T) == 2) {
      const T* const from = b + (16 * step + lane % 16) * pitch<T, D> + lane / 16 * 8;
#pragma unroll
      for (int n = 0; n < W; n += 16) {
        uint32_t right[4];
        device::ldmatrix<4, true>(right, from + n);
        multiply<T>(d[n / 8], left, right[0], right[1]);
        multiply<T>(d[n / 8 + 1], left, right[2], right[3]);
      }
    } else {
      const T* const from = b + (8 * step + lane % 4 * 2) * pitch<T, D> + lane / 4;
#pragma unroll
      for (int n = 0; n < W; n += 8) multiply<T>(d[n / 8], left, __float_as_uint(from[n]), __float_as_uint(from[n + pitch<T, D>]));
    }
  }
}

template <int count>
__device__ __forceinline__ void clear(float (&d)[count][4]) {
#pragma unroll
  for (int n = 0; n < count; ++n)
#pragma unroll
    for (int e = 0; e < 4; ++e) d[n][e] = 0.0f;
}

}  // namespace fastdl::cuda
