// One element too many of a static shared array.
#include "device.cuh"
#include "simt/case.h"

namespace static_overflow {
using namespace fastdl::device;

template <bool planted>
__global__ void shift(float* out, const float* in) {
  STATIC_SHARED(float, before, [8]);
  STATIC_SHARED(float, staged, [128]);
  STATIC_SHARED(float, after, [8]);
  if (threadIdx.x < 8) before[threadIdx.x] = after[threadIdx.x] = 0;
  staged[threadIdx.x] = in[threadIdx.x];
  block_barrier();
  const unsigned next = threadIdx.x + 1;
  // Behind a pointer, so that no compiler sees the end of the array.
  const float* pointer = staged;
  out[threadIdx.x] = pointer[planted ? next : next % 128];
}
}  // namespace static_overflow

SIMT_CASE(static_overflow) {
  using namespace static_overflow;
  const auto kernel = c.integer("planted") != 0 ? shift<true> : shift<false>;
  c.check(fastdl::device::launch(kernel, 1, 128, 0, nullptr, c.array<float>("out"), c.array<const float>("in")));
}
