// The names that CUDA itself gives to kernels.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <type_traits>

#include "runtime.h"

#define __host__
#define __device__
#define __global__
#define __constant__ static const
#define __grid_constant__
#define __forceinline__ inline
#define __align__(bytes) __attribute__((aligned(bytes)))
#define __launch_bounds__(...)

// Shared memory is declared with STATIC_SHARED and DYNAMIC_SHARED; __shared__ is left undefined, so that it does not compile.

// Those of the thread that runs; the scheduler sets them.
extern uint3 threadIdx, blockIdx;
extern dim3 blockDim, gridDim;
inline constexpr int warpSize = 32;

#define FASTDL_VECTORS(scalar, name, size)                             \
  struct alignas(sizeof(scalar) * 2) name##2 {                         \
    scalar x, y;                                                       \
  };                                                                   \
  struct alignas(size) name##4 {                                       \
    scalar x, y, z, w;                                                 \
  };                                                                   \
  inline name##2 make_##name##2(scalar x, scalar y) { return {x, y}; } \
  inline name##4 make_##name##4(scalar x, scalar y, scalar z, scalar w) { return {x, y, z, w}; }
FASTDL_VECTORS(unsigned, uint, 16)
FASTDL_VECTORS(float, float, 16)
FASTDL_VECTORS(int, int, 16)
FASTDL_VECTORS(double, double, 16)
#undef FASTDL_VECTORS

using std::max;
using std::min;

inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __clz(int x) { return x == 0 ? 32 : __builtin_clz(unsigned(x)); }
inline int __clzll(long long x) { return x == 0 ? 64 : __builtin_clzll((unsigned long long)(x)); }
inline unsigned __umulhi(unsigned a, unsigned b) { return unsigned(uint64_t(a) * b >> 32); }
inline unsigned long long __umul64hi(unsigned long long a, unsigned long long b) {
  return (unsigned long long)((unsigned __int128)(a)*b >> 64);
}
template <class To, class From>
inline To fastdl_same_bits(From from) {
  To to;
  static_assert(sizeof(To) == sizeof(From));
  std::memcpy(&to, &from, sizeof(To));
  return to;
}
inline unsigned __float_as_uint(float x) { return fastdl_same_bits<unsigned>(x); }
inline int __float_as_int(float x) { return fastdl_same_bits<int>(x); }
inline float __uint_as_float(unsigned x) { return fastdl_same_bits<float>(x); }
inline float __int_as_float(int x) { return fastdl_same_bits<float>(x); }
inline float __fmaf_rn(float a, float b, float c) { return std::fma(a, b, c); }
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fsub_rn(float a, float b) { return a - b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline float __fsqrt_rn(float a) { return std::sqrt(a); }
inline float __frcp_rn(float a) { return 1 / a; }
inline float __double2float_rn(double a) { return float(a); }
inline float rsqrtf(float x) { return float(1 / std::sqrt(double(x))); }
inline double rsqrt(double x) { return 1 / std::sqrt(x); }

inline void __threadfence() { simt::thread_fence(); }
inline void __threadfence_block() { simt::thread_fence(); }
[[noreturn]] inline void __trap() { simt::fail("trap", simt::here(), "the kernel ended itself"); }

// Atomic operations; `T` is what the pointer points to, as in CUDA's overloads.
template <class T, class Next>
inline T fastdl_atomic(T* pointer, Next next, simt::Site site) {
  simt::note_atomic(pointer, sizeof(T), site);
  T old;
  simt::raw_copy(&old, pointer, sizeof(T));
  const T value = next(old);
  simt::raw_copy(pointer, &value, sizeof(T));
  return old;
}
#define FASTDL_ATOMIC(name, expression)                                                      \
  template <class T>                                                                         \
  inline T name(T* pointer, std::type_identity_t<T> value, simt::Site site = simt::here()) { \
    return fastdl_atomic(                                                                    \
        pointer, [=]([[maybe_unused]] T old) { return T(expression); }, site);               \
  }
FASTDL_ATOMIC(atomicAdd, old + value)
FASTDL_ATOMIC(atomicSub, old - value)
FASTDL_ATOMIC(atomicMax, old < value ? value : old)
FASTDL_ATOMIC(atomicMin, value < old ? value : old)
FASTDL_ATOMIC(atomicExch, value)
FASTDL_ATOMIC(atomicAnd, old& value)
FASTDL_ATOMIC(atomicOr, old | value)
FASTDL_ATOMIC(atomicXor, old ^ value)
FASTDL_ATOMIC(atomicInc, old >= value ? 0 : old + 1)
#undef FASTDL_ATOMIC
template <class T>
inline T atomicCAS(T* pointer, std::type_identity_t<T> compare, std::type_identity_t<T> value, simt::Site site = simt::here()) {
  return fastdl_atomic(
      pointer, [=](T old) { return old == compare ? value : old; }, site);
}
