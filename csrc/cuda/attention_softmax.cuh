// The running softmax of a warp's rows (Milakov & Gimelshein 2018, arXiv:1805.02867) over blocks of keys.
#pragma once

#include "attention_scores.cuh"

namespace fastdl::cuda {

// Of rows g and g + 8 of the warp, in each of the four threads that share them.
template <class T>
struct Softmax {
  float most[2] = {-INFINITY, -INFINITY};  // the largest exponent so far
  float sum[2] = {0.0f, 0.0f};             // of this thread's own columns

  // Exponents become weights, relative to the largest so far. Gives by what all that was summed before must be multiplied; 1 in all
  // lanes, and false, where nothing changed.
  template <int count>
  __device__ __forceinline__ bool weigh(float (&s)[count][4], float (&correction)[2]) {
    bool changed = false;
#pragma unroll
    for (int row = 0; row < 2; ++row) {
      float largest = most[row];
#pragma unroll
      for (int n = 0; n < count; ++n) largest = fmaxf(largest, fmaxf(s[n][2 * row], s[n][2 * row + 1]));
      largest = fmaxf(largest, device::shuffle_xor(largest, 1));
      largest = fmaxf(largest, device::shuffle_xor(largest, 2));
      // Where nothing was seen yet, -inf - -inf would be NaN.
      const float reference = largest == -INFINITY ? 0.0f : largest;
      correction[row] = most[row] == largest ? 1.0f : power<T>(most[row] - reference);
      changed = changed || most[row] != largest;
      most[row] = largest;
      float added = 0.0f;
#pragma unroll
      for (int n = 0; n < count; ++n)
#pragma unroll
        for (int e = 2 * row; e < 2 * row + 2; ++e) {
          s[n][e] = power<T>(s[n][e] - reference);
          added += s[n][e];
        }
      sum[row] = sum[row] * correction[row] + added;
    }
    return device::any_lane(changed);
  }

  // After the last block: the factor of each row of the weighted sum, and its log-sum-exp.
  __device__ __forceinline__ void finish(float (&factor)[2], float (&log_sum)[2]) const {
#pragma unroll
    for (int row = 0; row < 2; ++row) {
      float total = sum[row] + device::shuffle_xor(sum[row], 1);
      total += device::shuffle_xor(total, 2);
      factor[row] = total == 0.0f ? 0.0f : 1.0f / total;
      log_sum[row] = total == 0.0f ? -INFINITY : most[row] * (1.0f / exponent_unit<T>)+logf(total);
    }
  }
};

template <int count>
__device__ __forceinline__ void rescale(float (&d)[count][4], const float (&factor)[2]) {
#pragma unroll
  for (int n = 0; n < count; ++n)
#pragma unroll
    for (int e = 0; e < 4; ++e) d[n][e] *= factor[e / 2];
}

}  // namespace fastdl::cuda
