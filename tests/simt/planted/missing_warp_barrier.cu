// Lanes exchange through shared memory as if a warp ran in step, which it has not since sm_70.
#include "device.cuh"
#include "simt/case.h"

namespace missing_warp_barrier {
using namespace fastdl::device;

template <bool planted>
__global__ void swap(float* out, const float* in) {
  STATIC_SHARED(float, staged, [128]);
  staged[threadIdx.x] = in[threadIdx.x];
  if constexpr (!planted) warp_barrier();
  out[threadIdx.x] = staged[threadIdx.x ^ 1];
}
}  // namespace missing_warp_barrier

SIMT_CASE(missing_warp_barrier) {
  using namespace missing_warp_barrier;
  const auto kernel = c.integer("planted") != 0 ? swap<true> : swap<false>;
  c.check(fastdl::device::launch(kernel, 1, 128, 0, nullptr, c.array<float>("out"), c.array<const float>("in")));
}
