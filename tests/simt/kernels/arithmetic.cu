// The conversions and the fast mathematics, element by element.
#include "device.cuh"
#include "simt/case.h"

namespace arithmetic {
using namespace fastdl::device;

__global__ void convert(float* from_half, float* from_bfloat16, uint16_t* to_half, uint16_t* to_bfloat16, uint32_t* to_pair,
                        uint32_t* to_tensor_float, const float* in, int n) {
  for (int i = int(threadIdx.x); i < 65536; i += int(blockDim.x)) {
    from_half[i] = widen(half_bits{uint16_t(i)});
    from_bfloat16[i] = widen(bfloat16_bits{uint16_t(i)});
  }
  for (int i = int(threadIdx.x); i < n; i += int(blockDim.x)) {
    to_half[i] = narrow<half_bits>(in[i]).bits;
    to_bfloat16[i] = narrow<bfloat16_bits>(in[i]).bits;
    to_pair[i] = narrow_pair<half_bits>(in[i], in[n - 1 - i]) ^ narrow_pair<bfloat16_bits>(in[i], in[n - 1 - i]);
    to_tensor_float[i] = to_tf32(in[i]);
  }
}

__global__ void approximate(float* out, const float* in, int n) {
  for (int i = int(threadIdx.x); i < n; i += int(blockDim.x)) {
    const float x = in[i];
    const float results[] = {reciprocal_sqrt(x), exp2_approx(x),       exp_approx(x),          log2_approx(x),
                             tanh_approx(x),     reciprocal_approx(x), divide_approx(1.5f, x), float(reciprocal_sqrt(double(x)))};
    for (int j = 0; j < 8; ++j) out[j * n + i] = results[j];
  }
}
}  // namespace arithmetic

SIMT_CASE(convert) {
  const int n = int(c.bytes("in") / 4);
  c.check(fastdl::device::launch(arithmetic::convert, 1, 32, 0, nullptr, c.array<float>("from_half"),
                                 c.array<float>("from_bfloat16"), c.array<uint16_t>("to_half"), c.array<uint16_t>("to_bfloat16"),
                                 c.array<uint32_t>("to_pair"), c.array<uint32_t>("to_tensor_float"), c.array<const float>("in"),
                                 n));
}
SIMT_CASE(approximate) {
  const int n = int(c.bytes("in") / 4);
  c.check(fastdl::device::launch(arithmetic::approximate, 1, 32, 0, nullptr, c.array<float>("out"), c.array<const float>("in"), n));
}
