// Two blocks write the same element; and a last block that adds up what others wrote without their having fenced.
#include "device.cuh"
#include "simt/case.h"

namespace blocks_that_overlap {
using namespace fastdl::device;

template <bool planted>
__global__ void copy(float* out, const float* in) {
  const unsigned at = blockIdx.x * (planted ? 31 : 32) + threadIdx.x;
  out[at] = in[at];
  if (planted && blockIdx.x == 3 && threadIdx.x < 3) out[125 + threadIdx.x] = in[125 + threadIdx.x];
}

template <bool planted>
__global__ void sum(float* out, const float* in, float* partial, unsigned* arrived) {
  STATIC_SHARED(bool, last);
  float value = in[blockIdx.x * 32 + threadIdx.x];
  for (int distance = 16; distance > 0; distance /= 2) value += shuffle_xor(value, distance);
  if (threadIdx.x == 0) {
    partial[blockIdx.x] = value;
    if constexpr (!planted) __threadfence();
    last = atomicAdd(arrived, 1u) == gridDim.x - 1;
  }
  block_barrier();
  if (!last) return;
  __threadfence();
  float total = 0;
  for (unsigned i = 0; i < gridDim.x; ++i) total += partial[i];
  for (unsigned i = threadIdx.x; i < 128; i += 32) out[i] = total;
}
}  // namespace blocks_that_overlap

SIMT_CASE(blocks_that_overlap) {
  using namespace blocks_that_overlap;
  const auto kernel = c.integer("planted") != 0 ? copy<true> : copy<false>;
  c.check(fastdl::device::launch(kernel, 4, 32, 0, nullptr, c.array<float>("out"), c.array<const float>("in")));
}

SIMT_CASE(missing_thread_fence) {
  using namespace blocks_that_overlap;
  const auto kernel = c.integer("planted") != 0 ? sum<true> : sum<false>;
  auto* partial = static_cast<float*>(c.workspace(4 * sizeof(float), "partial"));
  auto* arrived = static_cast<unsigned*>(c.workspace(sizeof(unsigned), "arrived"));
  c.check(fastdl::device::fill_bytes(arrived, 0, sizeof(unsigned), nullptr));
  c.check(fastdl::device::launch(kernel, 4, 32, 0, nullptr, c.array<float>("out"), c.array<const float>("in"), partial, arrived));
}
