// cp.async, committed and never waited for before it is used.
#include "device.cuh"
#include "simt/case.h"

namespace missing_copy_wait {
using namespace fastdl::device;

template <bool planted>
__global__ void reverse(float* out, const float* in) {
  DYNAMIC_SHARED(float, staged);
  if (threadIdx.x < 32) cp_async<16>(staged + 4 * threadIdx.x, in + 4 * threadIdx.x);
  cp_async_commit();
  if constexpr (!planted) cp_async_wait<0>();
  block_barrier();
  out[threadIdx.x] = staged[127 - threadIdx.x];
  if constexpr (planted) cp_async_wait<0>();
}
}  // namespace missing_copy_wait

SIMT_CASE(missing_copy_wait) {
  using namespace missing_copy_wait;
  const auto kernel = c.integer("planted") != 0 ? reverse<true> : reverse<false>;
  c.check(fastdl::device::launch(kernel, 1, 128, 512, nullptr, c.array<float>("out"), c.array<const float>("in")));
}
