// A 16-byte load at an address that is a multiple of 4 alone.
#include "device.cuh"
#include "simt/case.h"

namespace misaligned_vector {
using namespace fastdl::device;

template <bool planted>
__global__ void shift(float* out, const float* in) {
  const unsigned begin = 4 * threadIdx.x, from = begin + (planted && begin < 124 ? 1 : 0);
  store_vector(out + begin, load_vector<Vector<float, 4>>(in + from));
}
}  // namespace misaligned_vector

SIMT_CASE(misaligned_vector) {
  using namespace misaligned_vector;
  const auto kernel = c.integer("planted") != 0 ? shift<true> : shift<false>;
  c.check(fastdl::device::launch(kernel, 1, 32, 0, nullptr, c.array<float>("out"), c.array<const float>("in")));
}
