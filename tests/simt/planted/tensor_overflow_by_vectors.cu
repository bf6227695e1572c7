// Vectors of four at a length that is no multiple of four.
#include "device.cuh"
#include "simt/case.h"

namespace tensor_overflow_by_vectors {
using namespace fastdl::device;

template <bool planted>
__global__ void copy(float* out, const float* in, int n) {
  using V = Vector<float, 4>;
  const int begin = 4 * int(threadIdx.x);
  if (begin >= n) return;
  if (planted || begin + 4 <= n) {
    store_vector<Cache::streaming>(out + begin, load_vector<V, Cache::read_only>(in + begin));
  } else {
    for (int i = begin; i < n; ++i) out[i] = in[i];
  }
}
}  // namespace tensor_overflow_by_vectors

SIMT_CASE(tensor_overflow_by_vectors) {
  using namespace tensor_overflow_by_vectors;
  const auto kernel = c.integer("planted") != 0 ? copy<true> : copy<false>;
  const int n = int(c.bytes("in") / sizeof(float));
  c.check(fastdl::device::launch(kernel, 1, 32, 0, nullptr, c.array<float>("out"), c.array<const float>("in"), n));
}
