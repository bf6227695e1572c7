// Products of matrices in shared memory by one warp: a tile of 32 rows by 32 columns.
//
// Half precision multiplies on tensor cores. float32 multiplies and adds as such: of TF32 three products would make up for one, but
// infinity is no sum of parts (inf 0 is NaN), and torch's own float32 is that of IEEE.
#pragma once

#include "device.cuh"

namespace fastdl::cuda {

inline constexpr int warp_tile = 32;

// Lane l, with g = l / 4 and t = l % 4, holds in [i][n][e] row 16 i + 8 (e / 2) + g and column 8 n + 2 t + e % 2, as mma leaves it.
using WarpTile = float[2][4][4];

__device__ __forceinline__ void clear(WarpTile& d) {
#pragma unroll
  for (int i = 0; i < 2; ++i)
#pragma unroll
    for (int n = 0; n < 4; ++n)
#pragma unroll
      for (int e = 0; e < 4; ++e) d[i][n][e] = 0.0f;
}

__device__ __forceinline__ int warp_tile_row(int i, int e) { return 16 * i + 8 * (e / 2) + int(threadIdx.x % 32) / 4; }
// Of e = 0 and 2; the next one is e + 1's.
__device__ __forceinline__ int warp_tile_column(int n) { return 8 * n + 2 * (int(threadIdx.x) % 4); }

template <class T, bool a_by_depth, bool b_by_depth, int depth, int a_pitch, int b_pitch>
__device__ __forceinline__ void multiply_half(WarpTile& d, const T* a, const T* b) {
  const int lane = int(threadIdx.x % 32);
#pragma unroll 2
  for (int k = 0; k < depth; k += 16) {
    uint32_t left[2][4];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      if constexpr (a_by_depth)
        device::ldmatrix<4, true>(left[i], a + (k + lane / 16 * 8 + lane % 8) * a_pitch + 16 * i + lane / 8 % 2 * 8);
      else device::ldmatrix<4>(left[i], a + (16 * i + lane % 16) * a_pitch + k + lane / 16 * 8);
    }
#pragma unroll
    for (int n = 0; n < 4; n += 2) {
      uint32_t right[4];
      if constexpr (b_by_depth) device::ldmatrix<4, true>(right, b + (k + lane % 16) * b_pitch + 8 * n + lane / 16 * 8);
      else device::ldmatrix<4>(right, b + (8 * n + lane % 8 + lane / 16 * 8) * b_pitch + k + lane / 8 % 2 * 8);
      const uint32_t first[2] = {right[0], right[1]}, second[2] = {right[2], right[3]};
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        device::mma_m16n8k16<T>(d[i][n], left[i], first);
        device::mma_m16n8k16<T>(d[i][n + 1], left[i], second);
      }
    }
  }
}

template <bool a_by_depth, bool b_by_depth, int depth, int a_pitch, int b_pitch>
__device__ __forceinline__ void multiply_float(WarpTile& d, const float* a, const float* b) {
  const int lane = int(threadIdx.x % 32), g = lane / 4, t = lane % 4;
  using Four = device::Vector<float, 4>;
#pragma unroll 1
  for (int k = 0; k < depth; k += 4) {
    Four left[4];  // of rows g, g + 8, ...
#pragma unroll
    for (int row = 0; row < 4; ++row) {
      if constexpr (!a_by_depth) left[row] = device::load_vector<Four>(a + (8 * row + g) * a_pitch + k);
      else {
#pragma unroll
        for (int step = 0; step < 4; ++step) left[row][step] = a[(k + step) * a_pitch + 8 * row + g];
      }
    }
#pragma unroll
    for (int n = 0; n < 4; ++n)
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        const int column = 8 * n + 2 * t + e;
        Four right;
        if constexpr (!b_by_depth) right = device::load_vector<Four>(b + column * b_pitch + k);
        else {
#pragma unroll
          for (int step = 0; step < 4; ++step) right[step] = b[(k + step) * b_pitch + column];
        }
#pragma unroll
        for (int row = 0; row < 4; ++row)
#pragma unroll
          for (int step = 0; step < 4; ++step) {
            float& sum = d[row / 2][n][2 * (row % 2) + e];
            sum = fmaf(left[row][step], right[step], sum);
          }
      }
  }
}

// d += a b over `depth`. a is (rows, depth) with `a_pitch` values from row to row, or (depth, rows) if a_by_depth; b is (columns,
// depth) or (depth, columns).
template <class T, bool a_by_depth, bool b_by_depth, int depth, int a_pitch, int b_pitch>
__device__ __forceinline__ void multiply(WarpTile& d, const T* a, const T* b) {
  if constexpr (sizeof(T) == 2) multiply_half<T, a_by_depth, b_by_depth, depth, a_pitch, b_pitch>(d, a, b);
  else multiply_float<a_by_depth, b_by_depth, depth, a_pitch, b_pitch>(d, a, b);
}

}  // namespace fastdl::cuda
