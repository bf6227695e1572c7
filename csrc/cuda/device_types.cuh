// The types of device.cuh that are the same on a GPU and on the host: 16-bit floats as bits, vectors, and the way between them.
#pragma once

#include <cstdint>
#include <cstring>

namespace fastdl::device {

// IEEE half and bfloat16 as they lie in memory. CUDA's own types need CUDA's headers, which the host build does without.
struct half_bits {
  uint16_t bits;
};
struct bfloat16_bits {
  uint16_t bits;
};

inline constexpr unsigned full_mask = 0xffffffffu;

// How the 16-byte chunks of a tile lie in shared memory, so that neither rows nor columns of them share a bank. In 128-byte rows
// chunk c of row r stands at c ^ (r % 8), in 64-byte rows at c ^ (r / 2 % 4), in 32-byte rows at c ^ (r / 4 % 2): always address
// bits 4 and up, exclusive-or bits 7 and up.
enum class Swizzle { none, bytes_32, bytes_64, bytes_128 };

// Values that are loaded and stored together; count is a power of two.
template <class T, int count>
struct alignas(sizeof(T) * count) Vector {
  T lane[count];

  __host__ __device__ T& operator[](int i) { return lane[i]; }
  __host__ __device__ const T& operator[](int i) const { return lane[i]; }
};

// The same bytes as another type of the same size.
template <class To, class From>
__host__ __device__ inline To reinterpret(const From& from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  memcpy(&to, &from, sizeof(To));
  return to;
}

__host__ __device__ inline float widen(float value) { return value; }

__host__ __device__ inline float widen(bfloat16_bits value) { return reinterpret<float>(uint32_t(value.bits) << 16); }

__host__ __device__ inline float widen(half_bits value) {
#if defined(__CUDA_ARCH__)
  float wide;
  asm("cvt.f32.f16 %0, %1;" : "=f"(wide) : "h"(value.bits));
  return wide;
#else
  // The exponent is rebased by one multiplication, which also makes subnormals right; infinity and NaN are set apart.
  uint32_t bits = reinterpret<uint32_t>(reinterpret<float>(uint32_t(value.bits & 0x7fffu) << 13) * 0x1p112f);
  if ((value.bits & 0x7c00u) == 0x7c00u) bits |= 0x7f800000u;
  return reinterpret<float>(bits | uint32_t(value.bits & 0x8000u) << 16);
#endif
}

// To nearest, ties to even.
template <class T>
__host__ __device__ T narrow(float value);

template <>
__host__ __device__ inline float narrow<float>(float value) {
  return value;
}

template <>
__host__ __device__ inline bfloat16_bits narrow<bfloat16_bits>(float value) {
#if defined(__CUDA_ARCH__)
  bfloat16_bits out;
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(out.bits) : "f"(value));
  return out;
#else
  const uint32_t bits = reinterpret<uint32_t>(value);
  // A NaN must not be rounded up to infinity.
  if ((bits & 0x7fffffffu) > 0x7f800000u) return {uint16_t(0x7fffu)};
  return {uint16_t((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16)};
#endif
}

template <>
__host__ __device__ inline half_bits narrow<half_bits>(float value) {
#if defined(__CUDA_ARCH__)
  half_bits out;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(out.bits) : "f"(value));
  return out;
#else
  uint32_t bits = reinterpret<uint32_t>(value);
  const uint32_t sign = (bits >> 16) & 0x8000u;
  bits &= 0x7fffffffu;
  uint32_t half;
  if (bits > 0x7f800000u) half = 0x7fffu;
  else if (bits >= 0x47800000u) half = 0x7c00u;  // 65536 and above; 65520 to 65536 rounds to infinity below
  // Subnormal in half: the addition of 0.5 aligns and rounds the mantissa.
  else if (bits < 0x38800000u) half = reinterpret<uint32_t>(reinterpret<float>(bits) + 0.5f) - 0x3f000000u;
  else half = (bits + 0xfffu + ((bits >> 13) & 1u) - 0x38000000u) >> 13;
  return {uint16_t(sign | half)};
#endif
}

// Two values side by side, as the matrix instructions take them: `low` in the low half.
template <class T>
__host__ __device__ uint32_t narrow_pair(float low, float high);

template <>
__host__ __device__ inline uint32_t narrow_pair<bfloat16_bits>(float low, float high) {
#if defined(__CUDA_ARCH__)
  uint32_t pair;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
  return pair;
#else
  return narrow<bfloat16_bits>(low).bits | uint32_t(narrow<bfloat16_bits>(high).bits) << 16;
#endif
}

template <>
__host__ __device__ inline uint32_t narrow_pair<half_bits>(float low, float high) {
#if defined(__CUDA_ARCH__)
  uint32_t pair;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
  return pair;
#else
  return narrow<half_bits>(low).bits | uint32_t(narrow<half_bits>(high).bits) << 16;
#endif
}

// The 10-bit mantissa that the matrix instructions read of a float32, rounded to nearest, ties away from zero.
__host__ __device__ inline uint32_t to_tf32(float value) {
#if defined(__CUDA_ARCH__)
  uint32_t out;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(out) : "f"(value));
  return out;
#else
  const uint32_t bits = reinterpret<uint32_t>(value);
  return (bits & 0x7f800000u) == 0x7f800000u ? bits : (bits + 0x1000u) & ~0x1fffu;
#endif
}

}  // namespace fastdl::device
