// A sum over a block, in the way of every reduction: within warps by shuffles, across them through shared memory.
#include "device.cuh"
#include "simt/case.h"

namespace block_sum {
using namespace fastdl::device;

__global__ void sum(float* out, const float* in, int n) {
  STATIC_SHARED(float, partial, [32]);
  DYNAMIC_SHARED(float, staged);
  float value = 0;
  for (int i = int(threadIdx.x); i < n; i += int(blockDim.x)) value += in[blockIdx.x * unsigned(n) + unsigned(i)];
  staged[threadIdx.x] = value;
  block_barrier();
  value = staged[blockDim.x - 1 - threadIdx.x];
  for (int distance = 16; distance > 0; distance /= 2) value += shuffle_xor(value, distance);
  if (lane_index() == 0) partial[threadIdx.x / 32] = value;
  block_barrier();
  if (threadIdx.x < 32) {
    value = threadIdx.x < blockDim.x / 32 ? partial[threadIdx.x] : 0;
    for (int distance = 16; distance > 0; distance /= 2) value += shuffle_xor(value, distance);
    if (threadIdx.x == 0) out[blockIdx.x] = value;
  }
}
}  // namespace block_sum

SIMT_CASE(block_sum) {
  const auto rows = unsigned(c.integer("rows"));
  c.check(fastdl::device::launch(block_sum::sum, rows, 128, 128 * sizeof(float), nullptr, c.array<float>("out"),
                                 c.array<const float>("in"), int(c.integer("n"))));
}
