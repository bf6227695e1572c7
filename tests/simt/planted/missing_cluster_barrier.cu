// A block reads the shared memory of another: before that one has written it, or after it has left, if a barrier is missing.
#include "device.cuh"
#include "simt/case.h"

namespace missing_cluster_barrier {
using namespace fastdl::device;

template <bool before, bool after>
__global__ void exchange(float* out, const float* in) {
  STATIC_SHARED(float, own, [32]);
  const unsigned at = blockIdx.x * 32 + threadIdx.x;
  own[threadIdx.x] = in[at];
  if constexpr (before) cluster_barrier();
  else block_barrier();
  out[at] = map_shared(own, cluster_size() - 1 - cluster_rank())[threadIdx.x];
  if constexpr (after) cluster_barrier();
}
}  // namespace missing_cluster_barrier

SIMT_CASE(missing_cluster_barrier) {
  using namespace missing_cluster_barrier;
  const auto kernel = c.integer("planted") != 0 ? exchange<false, true> : exchange<true, true>;
  c.check(fastdl::device::launch_cluster(kernel, 4, 32, 4, 0, nullptr, c.array<float>("out"), c.array<const float>("in")));
}

SIMT_CASE(missing_last_cluster_barrier) {
  using namespace missing_cluster_barrier;
  const auto kernel = c.integer("planted") != 0 ? exchange<true, false> : exchange<true, true>;
  c.check(fastdl::device::launch_cluster(kernel, 4, 32, 4, 0, nullptr, c.array<float>("out"), c.array<const float>("in")));
}
