// Elementary functions of vectors. In float they are polynomials, accurate to about one unit in the last place (the suite
// compares every activation with torch at each dtype); in double, which is for checking gradients, they are libm's, by lane.
#pragma once

#include <cmath>

#include "vector.h"

namespace fastdl {

template <class A, class F>
FASTDL_INLINE Vector<A> by_lane(Vector<A> x, F f) {
  for (int i = 0; i < lanes<A>; ++i) x[i] = f(x[i]);
  return x;
}

template <class A>
FASTDL_INLINE Vector<A> absolute(Vector<A> x) {
  return x < A(0) ? -x : x;
}

FASTDL_INLINE Vector<float> power_of_two(Integer<float> n) { return (Vector<float>)((n + 127) << 23); }

template <class A>
FASTDL_INLINE Vector<A> exponential(Vector<A> x) {
  if constexpr (sizeof(A) == 8) {
    return by_lane<A>(x, [](double v) { return std::exp(v); });
  } else {
    using V = Vector<float>;
    // Beyond these e^x is infinite or zero in float. The comparisons are false for NaN, which passes through.
    x = x > 89.0f ? broadcast(89.0f) : x;
    x = x < -104.0f ? broadcast(-104.0f) : x;
    // x = n ln 2 + r; adding 1.5 2^23 rounds to the nearest integer.
    V n = (x * 1.44269504088896341f + 12582912.0f) - 12582912.0f;
    V r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
    V p = broadcast(1.9875691500e-4f);
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = (p * r) * r + r + 1.0f;
    // 2^n in two factors: 2^128 and 2^-149 are no normal floats.
    Integer<float> exponent = __builtin_convertvector(n, Integer<float>);
    Integer<float> half = exponent >> 1;
    return (p * power_of_two(half)) * power_of_two(exponent - half);
  }
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
    return x > -0.5f ? p : exponential<A>(x) - 1.0f;
  }
}

// log(1 + t) for 0 <= t <= 1: 2 artanh(t / (2 + t)), whose argument is at most 1/3.
template <class A>
FASTDL_INLINE Vector<A> log_one_plus(Vector<A> t) {
  if constexpr (sizeof(A) == 8) {
    return by_lane<A>(t, [](double v) { return std::log1p(v); });
  } else {
    using V = Vector<float>;
    V z = t / (t + 2.0f);
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
    V large = 1.0f - 2.0f / (exponential<A>(absolute<A>(x) * 2.0f) + 1.0f);
    large = x < 0.0f ? -large : large;
    // Written so that NaN takes the polynomial, which keeps it.
    return absolute<A>(x) >= 0.625f ? large : small;
  }
}

template <class A>
FASTDL_INLINE Vector<A> error_function(Vector<A> x) {
  if constexpr (sizeof(A) == 8) {
    return by_lane<A>(x, [](double v) { return std::erf(v); });
  } else {
    using V = Vector<float>;
    // A rational minimax approximation on [-4, 4]; erf(4) is 1 in float.
    x = x > 4.0f ? broadcast(4.0f) : x;
    x = x < -4.0f ? broadcast(-4.0f) : x;
    V w = x * x;
    V p = broadcast(-2.72614225801306e-10f);
    p = p * w + 2.77068142495902e-08f;
    p = p * w - 2.10102402082508e-06f;
    p = p * w - 5.69250639462346e-05f;
    p = p * w - 7.34990630326855e-04f;
    p = p * w - 2.95459980854025e-03f;
    p = p * w - 1.60960333262415e-02f;
    V q = broadcast(-1.45660718464996e-05f);
    q = q * w - 2.13374055278905e-04f;
    q = q * w - 1.68282697438203e-03f;
    q = q * w - 7.37332916720468e-03f;
    q = q * w - 1.42647390514189e-02f;
    return x * p / q;
  }
}

}  // namespace fastdl
