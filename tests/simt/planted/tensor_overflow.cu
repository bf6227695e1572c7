// The last thread writes beside the output.
#include "device.cuh"
#include "simt/case.h"

namespace tensor_overflow {
using namespace fastdl::device;

template <bool planted>
__global__ void copy(float* out, const float* in, int n) {
  for (int i = int(threadIdx.x); i < n + (planted ? 1 : 0); i += 128) out[i] = i < n ? in[i] : 0;
}
}  // namespace tensor_overflow

SIMT_CASE(tensor_overflow) {
  using namespace tensor_overflow;
  const auto kernel = c.integer("planted") != 0 ? copy<true> : copy<false>;
  c.check(fastdl::device::launch(kernel, 1, 128, 0, nullptr, c.array<float>("out"), c.array<const float>("in"), 128));
}
