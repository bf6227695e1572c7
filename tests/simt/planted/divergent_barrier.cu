// A barrier in a branch that a part of the block takes.
#include "device.cuh"
#include "simt/case.h"

namespace divergent_barrier {
using namespace fastdl::device;

template <bool planted>
__global__ void copy(float* out, const float* in) {
  STATIC_SHARED(float, staged, [128]);
  staged[threadIdx.x] = in[threadIdx.x];
  if constexpr (planted) {
    if (threadIdx.x < 64) block_barrier();
  } else {
    block_barrier();
  }
  out[threadIdx.x] = staged[threadIdx.x ^ 1];
}
}  // namespace divergent_barrier

SIMT_CASE(divergent_barrier) {
  using namespace divergent_barrier;
  const auto kernel = c.integer("planted") != 0 ? copy<true> : copy<false>;
  c.check(fastdl::device::launch(kernel, 1, 128, 0, nullptr, c.array<float>("out"), c.array<const float>("in")));
}
