// All threads add to one place, which takes an atomic operation.
#include "device.cuh"
#include "simt/case.h"

namespace plain_addition {
using namespace fastdl::device;

template <bool planted>
__global__ void count(float* out, const float* in) {
  STATIC_SHARED(int, positive);
  if (threadIdx.x == 0) positive = 0;
  block_barrier();
  if (in[threadIdx.x] > 0) {
    if constexpr (planted) positive += 1;
    else atomicAdd(&positive, 1);
  }
  block_barrier();
  out[threadIdx.x] = float(positive);
}
}  // namespace plain_addition

SIMT_CASE(plain_addition) {
  using namespace plain_addition;
  const auto kernel = c.integer("planted") != 0 ? count<true> : count<false>;
  c.check(fastdl::device::launch(kernel, 1, 128, 0, nullptr, c.array<float>("out"), c.array<const float>("in")));
}
