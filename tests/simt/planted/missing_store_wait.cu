// A bulk store reads shared memory that is written again before it was waited for.
#include "device.cuh"
#include "simt/case.h"

namespace missing_store_wait {
using namespace fastdl::device;

template <bool planted>
__global__ void copy(float* out, const float* in) {
  STATIC_SHARED(float, staged, [32]);
  for (int i = 0; i < 4; ++i) {
    staged[threadIdx.x] = in[32 * i + int(threadIdx.x)];
    fence_proxy_async();
    block_barrier();
    if (threadIdx.x == 0) {
      bulk_store(out + 32 * i, staged, sizeof staged);
      bulk_commit();
      if constexpr (!planted) bulk_wait<0, true>();
    }
    block_barrier();
  }
  bulk_wait<0>();
}
}  // namespace missing_store_wait

SIMT_CASE(missing_store_wait) {
  using namespace missing_store_wait;
  const auto kernel = c.integer("planted") != 0 ? copy<true> : copy<false>;
  c.check(fastdl::device::launch(kernel, 1, 32, 0, nullptr, c.array<float>("out"), c.array<const float>("in")));
}
