// A lane reads one that its mask does not name.
#include "device.cuh"
#include "simt/case.h"

namespace outside_of_mask {
using namespace fastdl::device;

template <bool planted>
__global__ void swap(float* out, const float* in) {
  float value = in[threadIdx.x];
  if (threadIdx.x % 32 < 16) value = shuffle_xor(value, planted ? 16 : 8, 0x0000ffffu);
  out[threadIdx.x] = value;
}
}  // namespace outside_of_mask

SIMT_CASE(outside_of_mask) {
  using namespace outside_of_mask;
  const auto kernel = c.integer("planted") != 0 ? swap<true> : swap<false>;
  c.check(fastdl::device::launch(kernel, 1, 128, 0, nullptr, c.array<float>("out"), c.array<const float>("in")));
}
