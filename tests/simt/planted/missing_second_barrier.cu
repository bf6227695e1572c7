// A loop reads shared memory after a barrier, and writes it again with none: a fast warp overwrites what a slow one has yet to
// read.
#include "device.cuh"
#include "simt/case.h"

namespace missing_second_barrier {
using namespace fastdl::device;

template <bool planted>
__global__ void reverse_twice(float* out, const float* in) {
  STATIC_SHARED(float, staged, [128]);
  float value = in[threadIdx.x];
  for (int round = 0; round < 3; ++round) {
    staged[threadIdx.x] = value;
    block_barrier();
    value = staged[127 - threadIdx.x];
    if constexpr (!planted) block_barrier();
  }
  out[threadIdx.x] = value;
}
}  // namespace missing_second_barrier

SIMT_CASE(missing_second_barrier) {
  using namespace missing_second_barrier;
  const auto kernel = c.integer("planted") != 0 ? reverse_twice<true> : reverse_twice<false>;
  c.check(fastdl::device::launch(kernel, 1, 128, 0, nullptr, c.array<float>("out"), c.array<const float>("in")));
}
