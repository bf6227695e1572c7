// Threads read what others wrote to shared memory, with no barrier between.
#include "device.cuh"
#include "simt/case.h"

namespace missing_barrier {
using namespace fastdl::device;

template <bool planted>
__global__ void reverse(float* out, const float* in) {
  STATIC_SHARED(float, staged, [128]);
  staged[threadIdx.x] = in[threadIdx.x];
  if constexpr (!planted) block_barrier();
  out[threadIdx.x] = staged[127 - threadIdx.x];
}
}  // namespace missing_barrier

SIMT_CASE(missing_barrier) {
  using namespace missing_barrier;
  const auto kernel = c.integer("planted") != 0 ? reverse<true> : reverse<false>;
  c.check(fastdl::device::launch(kernel, 1, 128, 0, nullptr, c.array<float>("out"), c.array<const float>("in")));
}
