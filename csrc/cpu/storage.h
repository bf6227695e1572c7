// The dtypes of tensors, the type their arithmetic is done in, and the way between the two.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace fastdl {

enum class Dtype { float32, float64, bfloat16, float16 };

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

template <class T>
inline void widen(const T* in, float* out, int64_t n) {
  int64_t i = 0;
#if defined(__AVX512F__)
  if constexpr (std::is_same_v<T, Float16>)
    for (; i + 16 <= n; i += 16) _mm512_storeu_ps(out + i, _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)(in + i))));
#elif defined(__F16C__)
  if constexpr (std::is_same_v<T, Float16>)
    for (; i + 8 <= n; i += 8) _mm256_storeu_ps(out + i, _mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)(in + i))));
#endif
  for (; i < n; ++i) out[i] = widen(in[i]);
}

template <class T>
inline void narrow(const float* in, T* out, int64_t n) {
  int64_t i = 0;
#if defined(__AVX512F__)
  if constexpr (std::is_same_v<T, Float16>)
    for (; i + 16 <= n; i += 16)
      _mm256_storeu_si256((__m256i*)(out + i), _mm512_cvtps_ph(_mm512_loadu_ps(in + i), _MM_FROUND_TO_NEAREST_INT));
#elif defined(__F16C__)
  if constexpr (std::is_same_v<T, Float16>)
    for (; i + 8 <= n; i += 8)
      _mm_storeu_si128((__m128i*)(out + i), _mm256_cvtps_ph(_mm256_loadu_ps(in + i), _MM_FROUND_TO_NEAREST_INT));
#endif
  for (; i < n; ++i) narrow(in[i], out[i]);
}

}  // namespace fastdl
