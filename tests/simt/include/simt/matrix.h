// The host's half of device_matrix.cuh.
#pragma once

#include <cstdint>
#include <type_traits>

#include "runtime.h"

namespace simt {

struct MatrixMove {
  void* row;
  uint32_t* fragment;
  int count;
  bool transposed;
};
void compute_ldmatrix(Lanes& lanes);
void compute_stmatrix(Lanes& lanes);

struct MatrixMultiply {
  float* d;
  const uint32_t *a, *b;
};
void compute_mma_half(Lanes& lanes);
void compute_mma_bfloat16(Lanes& lanes);
void compute_mma_tf32(Lanes& lanes);

}  // namespace simt

namespace fastdl::device {

template <int count, bool transposed = false>
void ldmatrix(uint32_t (&fragment)[count], const void* row, simt::Site site = simt::here()) {
  static_assert(count == 1 || count == 2 || count == 4);
  simt::MatrixMove operand{const_cast<void*>(row), fragment, count, transposed};
  simt::collective(simt::Collective::matrix_load, full_mask, site, &operand, simt::compute_ldmatrix);
}
inline void stmatrix(void* row, const uint32_t (&fragment)[4], simt::Site site = simt::here()) {
  simt::MatrixMove operand{row, const_cast<uint32_t*>(fragment), 4, false};
  simt::collective(simt::Collective::matrix_store, full_mask, site, &operand, simt::compute_stmatrix);
}

template <class T>
void mma_m16n8k16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], simt::Site site = simt::here()) {
  static_assert(std::is_same_v<T, half_bits> || std::is_same_v<T, bfloat16_bits>);
  simt::MatrixMultiply operand{d, a, b};
  simt::collective(simt::Collective::matrix_multiply, full_mask, site, &operand,
                   std::is_same_v<T, half_bits> ? simt::compute_mma_half : simt::compute_mma_bfloat16);
}
inline void mma_m16n8k8_tf32(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], simt::Site site = simt::here()) {
  simt::MatrixMultiply operand{d, a, b};
  simt::collective(simt::Collective::matrix_multiply, full_mask, site, &operand, simt::compute_mma_tf32);
}

}  // namespace fastdl::device
