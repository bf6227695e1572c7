// Philox 4x32-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"): four random words from a counter of four and
// a key of two, by which attention and dropout choose; fastdl/reference/dropout.py is the definition.
#pragma once

#include "device.cuh"

namespace fastdl::cuda {

// The counter becomes the call's words. `unrolled`: how many of the ten rounds the compiler writes out; with all of them no round
// waits for a branch, with one a kernel that has few registers left keeps them.
template <int unrolled>
__device__ __forceinline__ void philox(uint32_t (&words)[4], uint32_t key_0, uint32_t key_1) {
#pragma unroll unrolled
  for (int round = 0; round < 10; ++round) {
    const uint64_t first = uint64_t(0xD2511F53u) * words[0], second = uint64_t(0xCD9E8D57u) * words[2];
    words[0] = uint32_t(second >> 32) ^ words[1] ^ key_0;
    words[1] = uint32_t(second);
    words[2] = uint32_t(first >> 32) ^ words[3] ^ key_1;
    words[3] = uint32_t(first);
    key_0 += 0x9E3779B9u;
    key_1 += 0xBB67AE85u;
  }
}

}  // namespace fastdl::cuda
