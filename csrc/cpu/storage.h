// The dtypes of tensors, the type their arithmetic is done in, and the way between the two.
#pragma once

#include <type_traits>

#include "../types.h"
#include "vector.h"

namespace fastdl {

struct BFloat16 {
  uint16_t bits;
};
struct Float16 {
  uint16_t bits;
};

// float for all but double: statistics are never taken in half precision.
template <class T>
using Arithmetic = std::conditional_t<std::is_same_v<T, double>, double, float>;

inline float widen(BFloat16 value) {
  uint32_t bits = uint32_t(value.bits) << 16;
  float wide;
  std::memcpy(&wide, &bits, 4);
  return wide;
}

inline void narrow(float value, BFloat16& out) {
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  // To nearest, ties to even. A NaN must not be rounded up to infinity.
  uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  out.bits = uint16_t((bits & 0x7fffffffu) > 0x7f800000u ? ((bits >> 16) | 0x40u) : rounded);
}

inline float widen(Float16 value) {
  // The exponent is rebased by one multiplication, which also makes subnormals right; infinity and NaN are set apart.
  uint32_t magnitude = uint32_t(value.bits & 0x7fffu) << 13;
  float wide;
  std::memcpy(&wide, &magnitude, 4);
  wide *= 0x1p112f;
  uint32_t bits;
  std::memcpy(&bits, &wide, 4);
  if ((value.bits & 0x7c00u) == 0x7c00u) bits |= 0x7f800000u;
  bits |= uint32_t(value.bits & 0x8000u) << 16;
  std::memcpy(&wide, &bits, 4);
  return wide;
}

inline void narrow(float value, Float16& out) {
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  const uint32_t sign = (bits >> 16) & 0x8000u;
  bits &= 0x7fffffffu;
  uint32_t half;
  if (bits > 0x7f800000u) {
    half = 0x7e00u | (bits >> 13 & 0x3ffu);
  } else if (bits >= 0x47800000u) {  // 65536 and above; 65520 to 65536 rounds to infinity below
    half = 0x7c00u;
  } else if (bits < 0x38800000u) {  // subnormal in half: let the addition of 0.5 align and round the mantissa
    float magnitude;
    std::memcpy(&magnitude, &bits, 4);
    magnitude += 0.5f;
    std::memcpy(&half, &magnitude, 4);
    half -= 0x3f000000u;
  } else {
    half = (bits + 0xfffu + ((bits >> 13) & 1u) - 0x38000000u) >> 13;
  }
  out.bits = uint16_t(sign | half);
}

// -- a vector at a time: load_vector and store_vector of vector.h for the half-precision types
// -------------------------------------

typedef uint16_t HalfBits __attribute__((vector_size(vector_bytes / 2)));

FASTDL_INLINE Vector<float> widen(HalfBits bits, BFloat16) {
#if FASTDL_AVX512
  return (Vector<float>)_mm512_slli_epi32(_mm512_cvtepu16_epi32((__m256i)bits), 16);
#elif FASTDL_AVX2
  return (Vector<float>)_mm256_slli_epi32(_mm256_cvtepu16_epi32((__m128i)bits), 16);
#else
  return (Vector<float>)(__builtin_convertvector(bits, Integer<float>) << 16);
#endif
}

FASTDL_INLINE HalfBits narrow(Vector<float> value, BFloat16) {
#if FASTDL_AVX512 && defined(__AVX512BF16__)
  // One instruction instead of eight. It takes floats below 2^-126 for 0, where the loop below keeps what bfloat16 can of them.
  return (HalfBits)_mm512_cvtneps_pbh((__m512)value);
#else
  // As the scalar narrow has it.
  typedef uint32_t Bits __attribute__((vector_size(vector_bytes)));
  const Bits bits = (Bits)value, rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  return __builtin_convertvector(value == value ? rounded : (bits >> 16) | 0x40, HalfBits);
#endif
}

FASTDL_INLINE Vector<float> widen(HalfBits bits, Float16) {
#if FASTDL_AVX512
  return (Vector<float>)_mm512_cvtph_ps((__m256i)bits);
#elif FASTDL_AVX2 && defined(__F16C__)
  return (Vector<float>)_mm256_cvtph_ps((__m128i)bits);
#else
  Vector<float> value;
  for (int i = 0; i < lanes<float>; ++i) value[i] = widen(Float16{bits[i]});
  return value;
#endif
}

FASTDL_INLINE HalfBits narrow(Vector<float> value, Float16) {
#if FASTDL_AVX512
  return (HalfBits)_mm512_cvtps_ph((__m512)value, _MM_FROUND_TO_NEAREST_INT);
#elif FASTDL_AVX2 && defined(__F16C__)
  return (HalfBits)_mm256_cvtps_ph((__m256)value, _MM_FROUND_TO_NEAREST_INT);
#else
  HalfBits bits;
  for (int i = 0; i < lanes<float>; ++i) {
    Float16 half;
    narrow(value[i], half);
    bits[i] = half.bits;
  }
  return bits;
#endif
}

FASTDL_INLINE HalfBits load_bits(const void* p) {
  HalfBits bits;
  std::memcpy(&bits, p, sizeof bits);
  return bits;
}

FASTDL_INLINE HalfBits load_first_bits(const void* p, int count) {
#if FASTDL_AVX512
  return (HalfBits)_mm256_maskz_loadu_epi16((__mmask16)((1u << count) - 1), p);
#else
  HalfBits bits{};
  for (int i = 0; i < count; ++i) bits[i] = static_cast<const uint16_t*>(p)[i];
  return bits;
#endif
}

FASTDL_INLINE void store_first_bits(void* p, HalfBits bits, int count) {
#if FASTDL_AVX512
  _mm256_mask_storeu_epi16(p, (__mmask16)((1u << count) - 1), (__m256i)bits);
#else
  for (int i = 0; i < count; ++i) static_cast<uint16_t*>(p)[i] = bits[i];
#endif
}

#define FASTDL_HALF_PRECISION(T)                                                                                  \
  FASTDL_INLINE Vector<float> load_vector(const T* p) { return widen(load_bits(p), T{}); }                        \
  FASTDL_INLINE Vector<float> load_first(const T* p, int count) { return widen(load_first_bits(p, count), T{}); } \
  FASTDL_INLINE void store_vector(T* p, Vector<float> v) {                                                        \
    const HalfBits bits = narrow(v, T{});                                                                         \
    std::memcpy(p, &bits, sizeof bits);                                                                           \
  }                                                                                                               \
  FASTDL_INLINE void store_first(T* p, Vector<float> v, int count) { store_first_bits(p, narrow(v, T{}), count); }

FASTDL_HALF_PRECISION(BFloat16)
FASTDL_HALF_PRECISION(Float16)
#undef FASTDL_HALF_PRECISION

// Arrays, between any storage type and the type of its arithmetic.
template <class T>
inline void widen(const T* in, Arithmetic<T>* out, int64_t n) {
  sweep<Arithmetic<T>>(n, [&](int64_t i, auto part) { part.store(out + i, part.load(in + i)); });
}

template <class T>
inline void narrow(const Arithmetic<T>* in, T* out, int64_t n) {
  sweep<Arithmetic<T>>(n, [&](int64_t i, auto part) { part.store(out + i, part.load(in + i)); });
}

}  // namespace fastdl
