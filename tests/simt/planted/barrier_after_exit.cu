// Threads beyond the end leave before a barrier that the others come to.
#include "device.cuh"
#include "simt/case.h"

namespace barrier_after_exit {
using namespace fastdl::device;

template <bool planted>
__global__ void copy(float* out, const float* in, unsigned n) {
  STATIC_SHARED(float, staged, [128]);
  if (planted && threadIdx.x >= n) return;
  staged[threadIdx.x] = threadIdx.x < n ? in[threadIdx.x] : 0;
  block_barrier();
  if (threadIdx.x < n) out[threadIdx.x] = staged[threadIdx.x];
  else out[threadIdx.x] = 0;
}
}  // namespace barrier_after_exit

SIMT_CASE(barrier_after_exit) {
  using namespace barrier_after_exit;
  const auto kernel = c.integer("planted") != 0 ? copy<true> : copy<false>;
  c.check(fastdl::device::launch(kernel, 1, 128, 0, nullptr, c.array<float>("out"), c.array<const float>("in"), 100u));
}
