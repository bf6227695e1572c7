// A bulk store of what threads wrote a moment ago, without the fence that makes their stores visible to it.
#include "device.cuh"
#include "simt/case.h"

namespace missing_proxy_fence {
using namespace fastdl::device;

template <bool planted>
__global__ void copy(float* out, const float* in) {
  STATIC_SHARED(float, staged, [128]);
  staged[threadIdx.x] = in[threadIdx.x];
  if constexpr (!planted) fence_proxy_async();
  block_barrier();
  if (threadIdx.x == 0) {
    bulk_store(out, staged, sizeof staged);
    bulk_commit();
    bulk_wait<0>();
  }
}
}  // namespace missing_proxy_fence

SIMT_CASE(missing_proxy_fence) {
  using namespace missing_proxy_fence;
  const auto kernel = c.integer("planted") != 0 ? copy<true> : copy<false>;
  c.check(fastdl::device::launch(kernel, 1, 128, 0, nullptr, c.array<float>("out"), c.array<const float>("in")));
}
