// Half a warp shuffles with the mask of a whole one.
#include "device.cuh"
#include "simt/case.h"

namespace wrong_mask {
using namespace fastdl::device;

template <bool planted>
__global__ void swap(float* out, const float* in) {
  float value = in[threadIdx.x];
  if (threadIdx.x % 32 < 16) value = shuffle_xor(value, 1, planted ? full_mask : 0x0000ffffu);
  out[threadIdx.x] = value;
}
}  // namespace wrong_mask

SIMT_CASE(wrong_mask) {
  using namespace wrong_mask;
  const auto kernel = c.integer("planted") != 0 ? swap<true> : swap<false>;
  c.check(fastdl::device::launch(kernel, 1, 128, 0, nullptr, c.array<float>("out"), c.array<const float>("in")));
}
