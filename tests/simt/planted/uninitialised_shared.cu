// A sum over a shared array of which the last warp's entries were never written.
#include "device.cuh"
#include "simt/case.h"

namespace uninitialised_shared {
using namespace fastdl::device;

template <bool planted>
__global__ void sum(float* out, const float* in) {
  STATIC_SHARED(float, partial, [128]);
  if (!planted || threadIdx.x < 96) partial[threadIdx.x] = in[threadIdx.x];
  block_barrier();
  float total = 0;
  for (float each : partial) total += each;
  out[threadIdx.x] = total;
}
}  // namespace uninitialised_shared

SIMT_CASE(uninitialised_shared) {
  using namespace uninitialised_shared;
  const auto kernel = c.integer("planted") != 0 ? sum<true> : sum<false>;
  c.check(fastdl::device::launch(kernel, 1, 128, 0, nullptr, c.array<float>("out"), c.array<const float>("in")));
}
