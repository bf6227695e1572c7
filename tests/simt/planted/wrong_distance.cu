// A warp's sum that forgets one step.
#include "device.cuh"
#include "simt/case.h"

namespace wrong_distance {
using namespace fastdl::device;

template <bool planted>
__global__ void sum(float* out, const float* in) {
  float value = in[threadIdx.x];
  for (int distance = 16; distance > (planted ? 1 : 0); distance /= 2) value += shuffle_xor(value, distance);
  out[threadIdx.x] = value;
}
}  // namespace wrong_distance

SIMT_CASE(wrong_distance) {
  using namespace wrong_distance;
  const auto kernel = c.integer("planted") != 0 ? sum<true> : sum<false>;
  c.check(fastdl::device::launch(kernel, 1, 128, 0, nullptr, c.array<float>("out"), c.array<const float>("in")));
}
