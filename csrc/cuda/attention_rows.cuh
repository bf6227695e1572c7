// Kernels that give one warp to each query of a call: how many blocks they take, and their launches.
#pragma once

#include "device.cuh"

namespace fastdl::cuda {

inline constexpr int row_threads = 128;

// The query of this warp among all of (N, H, L); beyond the last for some of the last block.
template <class Call>
__device__ inline int64_t row_of_warp(const Call& call) {
  return (call.first_block + blockIdx.x) * (row_threads / 32) + threadIdx.x / 32;
}

// A grid holds 2^31 - 1 blocks at most.
template <class Call>
int launch_rows(void (*kernel)(Call, int64_t), Call call, void* stream) {
  const int64_t rows = call.attention.samples * call.attention.heads * call.attention.length;
  const int64_t blocks = (rows + row_threads / 32 - 1) / (row_threads / 32), most = int64_t(1) << 30;
  for (call.first_block = 0; call.first_block < blocks; call.first_block += most) {
    const int64_t rest = blocks - call.first_block;
    const int status = device::launch(kernel, dim3(unsigned(rest < most ? rest : most)), dim3(row_threads), 0,
                                      static_cast<device::Stream>(stream), call, rows);
    if (status != 0) return status;
  }
  return 0;
}

}  // namespace fastdl::cuda
