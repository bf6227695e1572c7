// Vectors of float or double, as wide as the instruction set that the file is compiled for, in GCC's and Clang's vector
// extension: arithmetic and comparisons are the language's own operators, so one source serves AVX-512, AVX2, SSE2 and NEON.
#pragma once

#include <cstdint>
#include <cstring>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace fastdl {

#if defined(__AVX512F__) && defined(__AVX512VL__) && defined(__AVX512BW__) && defined(__AVX512DQ__)
#define FASTDL_AVX512 1
inline constexpr int vector_bytes = 64;
#elif defined(__AVX2__) && defined(__FMA__)
#define FASTDL_AVX2 1
inline constexpr int vector_bytes = 32;
#else
inline constexpr int vector_bytes = 16;
#endif

#define FASTDL_INLINE inline __attribute__((always_inline))
#define FASTDL_INLINE_LAMBDA __attribute__((always_inline))

template <class A>
struct SimdTypes;
template <>
struct SimdTypes<float> {
  typedef float Vector __attribute__((vector_size(vector_bytes)));
  typedef int32_t Integer __attribute__((vector_size(vector_bytes)));
};
template <>
struct SimdTypes<double> {
  typedef double Vector __attribute__((vector_size(vector_bytes)));
  typedef int64_t Integer __attribute__((vector_size(vector_bytes)));
};

template <class A>
using Vector = typename SimdTypes<A>::Vector;
template <class A>
using Integer = typename SimdTypes<A>::Integer;

template <class A>
inline constexpr int lanes = vector_bytes / sizeof(A);

template <class A>
FASTDL_INLINE Vector<A> broadcast(A value) {
  return value - Vector<A>{};  // value - 0 keeps the sign of -0, value + 0 would not
}

template <class A>
FASTDL_INLINE Vector<A> load_vector(const A* p) {
  Vector<A> v;
  std::memcpy(&v, p, sizeof v);
  return v;
}

template <class A>
FASTDL_INLINE void store_vector(A* p, Vector<A> v) {
  std::memcpy(p, &v, sizeof v);
}

template <class A>
FASTDL_INLINE A sum_lanes(Vector<A> v) {
#if FASTDL_AVX512
  if constexpr (sizeof(A) == 4) return _mm512_reduce_add_ps((__m512)v);
  else return _mm512_reduce_add_pd((__m512d)v);
#else
  A total = 0;
  for (int i = 0; i < lanes<A>; ++i) total += v[i];
  return total;
#endif
}

template <class A>
inline constexpr A lane_numbers[16] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};

// The first `count` lanes of a vector, 1 to lanes - 1; what is beyond them is neither read nor written.
template <class A>
FASTDL_INLINE Vector<A> load_first(const A* p, int count) {
#if FASTDL_AVX512
  if constexpr (sizeof(A) == 4) return (Vector<A>)_mm512_maskz_loadu_ps((__mmask16)((1u << count) - 1), p);
  else return (Vector<A>)_mm512_maskz_loadu_pd((__mmask8)((1u << count) - 1), p);
#else
  Vector<A> v{};
  for (int i = 0; i < count; ++i) v[i] = p[i];
  return v;
#endif
}

template <class A>
FASTDL_INLINE void store_first(A* p, Vector<A> v, int count) {
#if FASTDL_AVX512
  if constexpr (sizeof(A) == 4) _mm512_mask_storeu_ps(p, (__mmask16)((1u << count) - 1), (__m512)v);
  else _mm512_mask_storeu_pd(p, (__mmask8)((1u << count) - 1), (__m512d)v);
#else
  for (int i = 0; i < count; ++i) p[i] = v[i];
#endif
}

// A whole vector, and the first few lanes of one. Loops over a span take either, so that a ragged end costs one masked vector.
// Memory may hold A itself or one of storage.h's half-precision types, which are widened on the way in and rounded on the way out.
template <class A>
struct Whole {
  template <class T>
  FASTDL_INLINE Vector<A> load(const T* p) const {
    return load_vector(p);
  }
  template <class T>
  FASTDL_INLINE void store(T* p, Vector<A> v) const {
    store_vector(p, v);
  }
  FASTDL_INLINE Vector<A> clear_rest(Vector<A> v) const { return v; }
};

template <class A>
struct First {
  int count;

  template <class T>
  FASTDL_INLINE Vector<A> load(const T* p) const {
    return load_first(p, count);
  }
  template <class T>
  FASTDL_INLINE void store(T* p, Vector<A> v) const {
    store_first(p, v, count);
  }
  FASTDL_INLINE Vector<A> clear_rest(Vector<A> v) const { return load_vector(lane_numbers<A>) < A(count) ? v : Vector<A>{}; }
};

// Running sums of the lanes in double. Sums of many floats go here every few vectors: torch's own kernels sum in double on the CPU,
// and a float that has grown to 100 rounds each further addend by 4e-6.
template <class A>
struct WideSum {
  Vector<double> parts[sizeof(double) / sizeof(A)] = {};

  FASTDL_INLINE void add(Vector<A> v) {
    if constexpr (sizeof(A) == 8) {
      parts[0] += v;
    } else {
#if FASTDL_AVX512
      parts[0] += (Vector<double>)_mm512_cvtps_pd(_mm512_castps512_ps256((__m512)v));
      parts[1] += (Vector<double>)_mm512_cvtps_pd(_mm512_extractf32x8_ps((__m512)v, 1));
#elif FASTDL_AVX2
      parts[0] += (Vector<double>)_mm256_cvtps_pd(_mm256_castps256_ps128((__m256)v));
      parts[1] += (Vector<double>)_mm256_cvtps_pd(_mm256_extractf128_ps((__m256)v, 1));
#else
      for (int i = 0; i < lanes<A>; ++i) parts[i / lanes<double>][i % lanes<double>] += double(v[i]);
#endif
    }
  }
  // The same onto sums in memory.
  static FASTDL_INLINE void add_to(double* sums, Vector<A> v) {
    WideSum wide;
    for (int i = 0; i < int(sizeof(double) / sizeof(A)); ++i) wide.parts[i] = load_vector(sums + i * lanes<double>);
    wide.add(v);
    for (int i = 0; i < int(sizeof(double) / sizeof(A)); ++i) store_vector(sums + i * lanes<double>, wide.parts[i]);
  }
  FASTDL_INLINE double total() const {
    Vector<double> sum = parts[0];
    if constexpr (sizeof(A) == 4) sum += parts[1];
    return sum_lanes<double>(sum);
  }
};

// Calls body(offset, part) over n values: Whole vectors, then First for what is left.
template <class A, class Body>
FASTDL_INLINE void sweep(int64_t n, Body&& body) {
  int64_t i = 0;
  for (; i + lanes<A> <= n; i += lanes<A>) body(i, Whole<A>{});
  if (i < n) body(i, First<A>{int(n - i)});
}

}  // namespace fastdl
