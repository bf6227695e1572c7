// A sum by atomic additions of floats: no race, but its rounding depends on the order of the threads.
#include "device.cuh"
#include "simt/case.h"

namespace float_atomics {
using namespace fastdl::device;

template <bool planted>
__global__ void sum(float* out, const float* in) {
  STATIC_SHARED(float, total);
  if (threadIdx.x == 0) total = 0;
  block_barrier();
  if constexpr (planted) {
    atomicAdd(&total, in[threadIdx.x]);
  } else if (threadIdx.x == 0) {
    for (int i = 0; i < 128; ++i) total += in[i];
  }
  block_barrier();
  out[threadIdx.x] = total;
}
}  // namespace float_atomics

SIMT_CASE(float_atomics) {
  using namespace float_atomics;
  const auto kernel = c.integer("planted") != 0 ? sum<true> : sum<false>;
  c.check(fastdl::device::launch(kernel, 1, 128, 0, nullptr, c.array<float>("out"), c.array<const float>("in")));
}
