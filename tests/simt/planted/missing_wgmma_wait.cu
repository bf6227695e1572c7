// Accumulators of wgmma that are read before they were waited for.
#include "device.cuh"
#include "simt/case.h"

namespace missing_wgmma_wait {
using namespace fastdl::device;

template <bool planted>
__global__ void multiply(float* out, const float* in) {
  DYNAMIC_SHARED(bfloat16_bits, tile);  // a, 64 x 16, then b, 16 x 8, both in core matrices of 8 rows of 16 bytes
  for (int i = int(threadIdx.x); i < 72 * 16; i += 128) tile[i] = narrow<bfloat16_bits>(in[i % 128]);
  fence_proxy_async();
  block_barrier();
  float d[4] = {};
  wgmma_fence();
  wgmma<bfloat16_bits>(d, matrix_descriptor(tile, 128, 256, Swizzle::none),
                       matrix_descriptor(tile + 64 * 16, 128, 256, Swizzle::none), false);
  wgmma_commit();
  if constexpr (!planted) wgmma_wait<0>();
  out[threadIdx.x] = d[0] + d[1] + d[2] + d[3];
  if constexpr (planted) wgmma_wait<0>();
}
}  // namespace missing_wgmma_wait

SIMT_CASE(missing_wgmma_wait) {
  using namespace missing_wgmma_wait;
  const auto kernel = c.integer("planted") != 0 ? multiply<true> : multiply<false>;
  c.check(fastdl::device::launch(kernel, 1, 128, 72 * 16 * 2, nullptr, c.array<float>("out"), c.array<const float>("in")));
}
