// ldmatrix, stmatrix and mma. The test gives matrices and compares matrices.
#include "device.cuh"
#include "simt/case.h"

namespace matrices {
using namespace fastdl::device;

// `count` 8 x 8 matrices from `in`, row by row; fragments to `out`, word m of lane l at m * 32 + l.
template <int count, bool transposed>
__global__ void load(uint32_t* out, const uint16_t* in) {
  STATIC_SHARED(uint16_t, staged, [count * 64]);
  for (unsigned i = threadIdx.x; i < count * 64; i += 32) staged[i] = in[i];
  warp_barrier();
  uint32_t fragment[count];
  ldmatrix<count, transposed>(fragment, staged + 8 * (threadIdx.x % (8 * count)));
  for (int m = 0; m < count; ++m) out[m * 32 + int(threadIdx.x)] = fragment[m];
}

// Four matrices there and back.
__global__ void load_and_store(uint16_t* out, const uint16_t* in) {
  STATIC_SHARED(uint16_t, staged, [256]);
  STATIC_SHARED(uint16_t, back, [256]);
  for (unsigned i = threadIdx.x; i < 256; i += 32) staged[i] = in[i];
  warp_barrier();
  uint32_t fragment[4];
  ldmatrix<4>(fragment, staged + 8 * threadIdx.x);
  stmatrix(back + 8 * threadIdx.x, fragment);
  warp_barrier();
  for (unsigned i = threadIdx.x; i < 256; i += 32) out[i] = back[i];
}

// out = a b + out with a 16 x 16 and b 16 x 8, both row by row in 16 bits.
template <class T>
__global__ void multiply(float* out, const T* a, const T* b) {
  STATIC_SHARED(T, left, [16][16]);
  STATIC_SHARED(T, right, [16][8]);
  const unsigned lane = threadIdx.x, g = lane / 4, t = lane % 4;
  for (unsigned i = lane; i < 256; i += 32) left[i / 16][i % 16] = a[i];
  for (unsigned i = lane; i < 128; i += 32) right[i / 8][i % 8] = b[i];
  warp_barrier();
  uint32_t fa[4], fb[2];
  ldmatrix<4>(fa, &left[lane % 16][lane / 16 * 8]);
  ldmatrix<2, true>(fb, &right[lane % 16][0]);
  float d[4] = {out[g * 8 + 2 * t], out[g * 8 + 2 * t + 1], out[(g + 8) * 8 + 2 * t], out[(g + 8) * 8 + 2 * t + 1]};
  mma_m16n8k16<T>(d, fa, fb);
  out[g * 8 + 2 * t] = d[0];
  out[g * 8 + 2 * t + 1] = d[1];
  out[(g + 8) * 8 + 2 * t] = d[2];
  out[(g + 8) * 8 + 2 * t + 1] = d[3];
}

// out = a b + out with a 16 x 8 and b 8 x 8 in float32.
__global__ void multiply_tf32(float* out, const float* a, const float* b) {
  const unsigned g = threadIdx.x / 4, t = threadIdx.x % 4;
  const uint32_t fa[4] = {to_tf32(a[g * 8 + t]), to_tf32(a[(g + 8) * 8 + t]), to_tf32(a[g * 8 + t + 4]),
                          to_tf32(a[(g + 8) * 8 + t + 4])};
  const uint32_t fb[2] = {to_tf32(b[t * 8 + g]), to_tf32(b[(t + 4) * 8 + g])};
  float d[4] = {out[g * 8 + 2 * t], out[g * 8 + 2 * t + 1], out[(g + 8) * 8 + 2 * t], out[(g + 8) * 8 + 2 * t + 1]};
  mma_m16n8k8_tf32(d, fa, fb);
  out[g * 8 + 2 * t] = d[0];
  out[g * 8 + 2 * t + 1] = d[1];
  out[(g + 8) * 8 + 2 * t] = d[2];
  out[(g + 8) * 8 + 2 * t + 1] = d[3];
}

template <int count>
void run_load(simt::Case& c) {
  const auto kernel = c.integer("transposed") != 0 ? load<count, true> : load<count, false>;
  c.check(launch(kernel, 1, 32, 0, nullptr, c.array<uint32_t>("out"), c.array<const uint16_t>("in")));
}
}  // namespace matrices

SIMT_CASE(ldmatrix) {
  if (c.integer("count") == 1) matrices::run_load<1>(c);
  else if (c.integer("count") == 2) matrices::run_load<2>(c);
  else matrices::run_load<4>(c);
}
SIMT_CASE(stmatrix) {
  c.check(
      fastdl::device::launch(matrices::load_and_store, 1, 32, 0, nullptr, c.array<uint16_t>("out"), c.array<const uint16_t>("in")));
}
SIMT_CASE(mma_float16) {
  using T = fastdl::device::half_bits;
  c.check(fastdl::device::launch(matrices::multiply<T>, 1, 32, 0, nullptr, c.array<float>("out"), c.array<const T>("a"),
                                 c.array<const T>("b")));
}
SIMT_CASE(mma_bfloat16) {
  using T = fastdl::device::bfloat16_bits;
  c.check(fastdl::device::launch(matrices::multiply<T>, 1, 32, 0, nullptr, c.array<float>("out"), c.array<const T>("a"),
                                 c.array<const T>("b")));
}
SIMT_CASE(mma_tf32) {
  c.check(fastdl::device::launch(matrices::multiply_tf32, 1, 32, 0, nullptr, c.array<float>("out"), c.array<const float>("a"),
                                 c.array<const float>("b")));
}
