// The launch asks for one element less of shared memory than the kernel writes.
#include "device.cuh"
#include "simt/case.h"

namespace dynamic_overflow {
using namespace fastdl::device;

__global__ void reverse(float* out, const float* in) {
  DYNAMIC_SHARED(float, staged);
  staged[threadIdx.x] = in[threadIdx.x];
  block_barrier();
  out[threadIdx.x] = staged[127 - threadIdx.x];
}
}  // namespace dynamic_overflow

SIMT_CASE(dynamic_overflow) {
  const size_t bytes = (c.integer("planted") != 0 ? 127 : 128) * sizeof(float);
  c.check(
      fastdl::device::launch(dynamic_overflow::reverse, 1, 128, bytes, nullptr, c.array<float>("out"), c.array<const float>("in")));
}
