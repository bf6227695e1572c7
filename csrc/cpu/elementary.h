// Elementary functions of vectors. In float they are polynomials, accurate to about one unit in the last place (the suite
// compares every activation with torch at each dtype); in double, which is for checking gradients, they are libm's, by lane.
#pragma once

#include <cmath>
#include <limits>
#include <type_traits>

#include "vector.h"

namespace fastdl {

template <class A, class F>
FASTDL_INLINE Vector<A> by_lane(Vector<A> x, F f) {
  for (int i = 0; i < lanes<A>; ++i) x[i] = f(x[i]);
  return x;
}

template <class A>
FASTDL_INLINE Vector<A> absolute(Vector<A> x) {
  return (Vector<A>)((Integer<A>)x & std::numeric_limits<std::remove_reference_t<decltype(Integer<A>{}[0])>>::max());
}

// The larger, or the smaller, of a bound and x; NaN if x is.
FASTDL_INLINE Vector<float> at_least(float bound, Vector<float> x) {
#if FASTDL_AVX512
  return (Vector<float>)_mm512_max_ps(_mm512_set1_ps(bound), (__m512)x);
#elif FASTDL_AVX2
  return (Vector<float>)_mm256_max_ps(_mm256_set1_ps(bound), (__m256)x);
#else
  return x < bound ? broadcast(bound) : x;
#endif
}
FASTDL_INLINE Vector<float> at_most(float bound, Vector<float> x) {
#if FASTDL_AVX512
  return (Vector<float>)_mm512_min_ps(_mm512_set1_ps(bound), (__m512)x);
#elif FASTDL_AVX2
  return (Vector<float>)_mm256_min_ps(_mm256_set1_ps(bound), (__m256)x);
#else
  return x > bound ? broadcast(bound) : x;
#endif
}

// The larger of two by lane; `otherwise` where x is NaN.
template <class A>
FASTDL_INLINE Vector<A> larger(Vector<A> x, Vector<A> otherwise) {
#if FASTDL_AVX512
  if constexpr (sizeof(A) == 4) return (Vector<A>)_mm512_max_ps((__m512)x, (__m512)otherwise);
  else return (Vector<A>)_mm512_max_pd((__m512d)x, (__m512d)otherwise);
#elif FASTDL_AVX2
  if constexpr (sizeof(A) == 4) return (Vector<A>)_mm256_max_ps((__m256)x, (__m256)otherwise);
  else return (Vector<A>)_mm256_max_pd((__m256d)x, (__m256d)otherwise);
#else
  return x > otherwise ? x : otherwise;
#endif
}

template <class A>
FASTDL_INLINE A largest_lane(Vector<A> v) {
#if FASTDL_AVX512
  if constexpr (sizeof(A) == 4) return _mm512_reduce_max_ps((__m512)v);
  else return _mm512_reduce_max_pd((__m512d)v);
#else
  A largest = v[0];
  for (int i = 1; i < lanes<A>; ++i) largest = v[i] > largest ? v[i] : largest;
  return largest;
#endif
}

// 2^(n + f) for an integer n and f from -1/2 to 1/2. The polynomial for 2^f is minimax in relative error (2e-9) among those that
// are 1 at 0.
FASTDL_INLINE Vector<float> two_to(Vector<float> n, Vector<float> f) {
  using V = Vector<float>;
  V p = broadcast(1.535336202799944e-4f);
  p = p * f + 1.33988746505303e-3f;
  p = p * f + 9.618437359130682e-3f;
  p = p * f + 5.550332470535825e-2f;
  p = p * f + 2.4022647913600548e-1f;
  p = p * f + 6.93147202855338e-1f;
  p = p * f + 1.0f;
#if FASTDL_AVX512
  return (V)_mm512_scalef_ps((__m512)p, (__m512)n);
#else
  // In two factors: 2^128 and 2^-149 are no normal floats.
  const Integer<float> exponent = __builtin_convertvector(n, Integer<float>), half = exponent >> 1;
  return (p * (V)((half + 127) << 23)) * (V)((exponent - half + 127) << 23);
#endif
}

// e^x for x from -110 to 90: 2^n 2^f with n the integer nearest to x / ln 2.
FASTDL_INLINE Vector<float> exponential_in_range(Vector<float> x) {
  using V = Vector<float>;
  const V n = (x * 1.44269504088896341f + 12582912.0f) - 12582912.0f;  // 1.5 2^23: the addition rounds to an integer
  return two_to(n, x * 1.44269504088896341f - n);
}

// e^(factor x) for a positive factor and results up to 2^126. The factor times log2(e) is kept in two parts: rounded to one float,
// with its product, it would put an error of 3e-7 on a weight of e^-10.
template <class A>
struct ScaledExponential {
  A high, low, least;

  explicit ScaledExponential(double factor) {
    const double exact = factor * 1.44269504088896340736;
    high = A(exact);
    low = A(exact - double(high));
    least = A(-160 / exact);  // below this the result is zero in float
  }
  FASTDL_INLINE Vector<A> operator()(Vector<A> x) const {
    if constexpr (sizeof(A) == 8) {
      const A factor = high;
      return by_lane<A>(x, [factor](double v) { return std::exp2(v * factor); });
    } else {
      const Vector<float> y = at_least(least, x), n = (y * high + 12582912.0f) - 12582912.0f;
      return two_to(n, y * low + (y * high - n));
    }
  }
};

template <class A>
FASTDL_INLINE Vector<A> exponential(Vector<A> x) {
  if constexpr (sizeof(A) == 8) return by_lane<A>(x, [](double v) { return std::exp(v); });
  else return exponential_in_range(at_most(90.0f, at_least(-110.0f, x)));  // beyond these e^x is infinite or zero in float
}

// The same for x <= 0.
template <class A>
FASTDL_INLINE Vector<A> decaying_exponential(Vector<A> x) {
  if constexpr (sizeof(A) == 8) return by_lane<A>(x, [](double v) { return std::exp(v); });
  else return exponential_in_range(at_least(-110.0f, x));
}

// 1 / d for a finite d of at least 1. A division of 16 floats takes as long as the whole polynomial of an exponential; an estimate
// of 14 bits and one step of Newton's method are within one unit in the last place, and take a quarter of that.
template <class A>
FASTDL_INLINE Vector<A> reciprocal(Vector<A> d) {
#if FASTDL_AVX512
  if constexpr (sizeof(A) == 4) {
    const Vector<A> estimate = (Vector<A>)_mm512_rcp14_ps((__m512)d);
    return estimate + estimate * (A(1) - d * estimate);
  }
#endif
  return A(1) / d;
}

// sigma(x) = 1 / (1 + e^-x), from e^-|x| so that nothing overflows and both tails are exact.
template <class A>
FASTDL_INLINE Vector<A> logistic(Vector<A> x) {
  const Vector<A> e = decaying_exponential<A>(-absolute<A>(x)), r = reciprocal<A>(A(1) + e);
  return x < A(0) ? e * r : r;
}

// e^x - 1 for x <= 0.
template <class A>
FASTDL_INLINE Vector<A> exponential_minus_one(Vector<A> x) {
  if constexpr (sizeof(A) == 8) {
    return by_lane<A>(x, [](double v) { return std::expm1(v); });
  } else {
    using V = Vector<float>;
    V p = broadcast(1.0f / 40320);  // Taylor's series to x^8: the next term is below 2^-27 of the value for x > -1/2
    p = p * x + 1.0f / 5040;
    p = p * x + 1.0f / 720;
    p = p * x + 1.0f / 120;
    p = p * x + 1.0f / 24;
    p = p * x + 1.0f / 6;
    p = p * x + 0.5f;
    p = (p * x) * x + x;
    return x > -0.5f ? p : decaying_exponential<A>(x) - 1.0f;
  }
}

// log(1 + t) for 0 <= t <= 1: 2 artanh(t / (2 + t)), whose argument is at most 1/3.
template <class A>
FASTDL_INLINE Vector<A> log_one_plus(Vector<A> t) {
  if constexpr (sizeof(A) == 8) {
    return by_lane<A>(t, [](double v) { return std::log1p(v); });
  } else {
    using V = Vector<float>;
    V z = t * reciprocal<A>(t + 2.0f);
    V w = z * z;
    V p = broadcast(2.0f / 15);
    p = p * w + 2.0f / 13;
    p = p * w + 2.0f / 11;
    p = p * w + 2.0f / 9;
    p = p * w + 2.0f / 7;
    p = p * w + 2.0f / 5;
    p = p * w + 2.0f / 3;
    return (p * w) * z + z + z;
  }
}

template <class A>
FASTDL_INLINE Vector<A> hyperbolic_tangent(Vector<A> x) {
  if constexpr (sizeof(A) == 8) {
    return by_lane<A>(x, [](double v) { return std::tanh(v); });
  } else {
    using V = Vector<float>;
    V w = x * x;
    V p = broadcast(-5.70498872745e-3f);  // Cephes' polynomial, for |x| < 0.625
    p = p * w + 2.06390887954e-2f;
    p = p * w - 5.37397155531e-2f;
    p = p * w + 1.33314422036e-1f;
    p = p * w - 3.33332819422e-1f;
    V small = (p * w) * x + x;
    // At most 20, where the tangent is 1, so that the exponential stays finite.
    const V magnitude = at_most(20.0f, absolute<A>(x));
    V large = 1.0f - 2.0f * reciprocal<A>(exponential_in_range(magnitude * 2.0f) + 1.0f);
    large = x < 0.0f ? -large : large;
    // Written so that NaN takes the polynomial, which keeps it.
    return magnitude >= 0.625f ? large : small;
  }
}

// Phi(x), the standard normal distribution function, with density_ratio = e^(-x^2/2), which its derivative needs too.
template <class A>
FASTDL_INLINE Vector<A> normal_distribution(Vector<A> x, Vector<A> density_ratio) {
  if constexpr (sizeof(A) == 8) {
    return by_lane<A>(x, [](double v) { return 0.5 * std::erfc(-v * M_SQRT1_2); });
  } else {
    using V = Vector<float>;
    // Phi(-|x|) e^(x^2/2) as a polynomial in t = 1 / (1 + 0.28 |x|), minimax in relative error (7e-8) for |x| up to 20: the tail
    // keeps its precision where 1 + erf would cancel.
    const V t = reciprocal<A>(at_most(40.0f, absolute<A>(x)) * 0.28f + 1.0f);
    V p = broadcast(0.02476531918386338f);
    p = p * t - 0.09292806815239817f;
    p = p * t + 0.0894377172519978f;
    p = p * t - 0.0014866057217466466f;
    p = p * t + 0.0685389130958353f;
    p = p * t + 0.08565258862633432f;
    p = p * t + 0.10254726007450049f;
    p = p * t + 0.11177296471314066f;
    p = p * t + 0.11169994749771935f;
    const V tail = density_ratio * (p * t);
    return x < 0.0f ? tail : 1.0f - tail;
  }
}

}  // namespace fastdl
