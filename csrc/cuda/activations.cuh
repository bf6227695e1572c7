// The twelve activations on vectors of float: values, and gradients g act'(u), which every kernel computes again from u instead of
// saving it. Conditions are written so that NaN passes, and ties fall where torch has them (relu'(0) = 0, hardswish'(3) = 1).
//
// Which activation it is, is asked once a vector: a branch that all threads take alike. A kernel for each would be twelve times as
// much to compile, and a vector costs far more to load than the branch.
#pragma once

#include "../types.h"
#include "device.cuh"

namespace fastdl::cuda {

// The machine's own approximations are a few units in the last place off, which is nothing in half precision; for float32 tensors,
// `precise`, they are corrected to about one.
template <bool precise>
__device__ __forceinline__ float exponential(float x) {
  if constexpr (!precise) return device::exp_approx(x);
  // e^x = 2^(x log2 e), the product in two floats: the high one's rounding would cost |x| 2^-24.
  const float high = x * 1.44269504088896341f;
  const float low = fmaf(x, 1.44269504088896341f, -high) + x * 1.925963033500011e-8f;
  const float e = device::exp2_approx(high);
  return fabsf(high) < 200.0f ? fmaf(e, low * 0.6931471805599453f, e) : e;
}

// 1 / d for a finite d of at least 1.
template <bool precise>
__device__ __forceinline__ float reciprocal(float d) {
  const float r = device::reciprocal_approx(d);
  return precise ? fmaf(r, fmaf(-d, r, 1.0f), r) : r;
}

__device__ __forceinline__ float at_most(float bound, float x) { return x > bound ? bound : x; }  // NaN if x is

// sigma(x) = 1 / (1 + e^-x), from e^-|x| so that nothing overflows and both tails are exact.
template <bool precise>
__device__ __forceinline__ float logistic(float x) {
  const float e = exponential<precise>(-fabsf(x)), r = reciprocal<precise>(1.0f + e);
  return x < 0.0f ? e * r : r;
}

// e^x - 1 for x <= 0.
template <bool precise>
__device__ __forceinline__ float exponential_minus_one(float x) {
  float p = 1.0f / 40320;  // Taylor's series to x^8: the next term is below 2^-27 of the value for x > -1/2
  p = p * x + 1.0f / 5040;
  p = p * x + 1.0f / 720;
  p = p * x + 1.0f / 120;
  p = p * x + 1.0f / 24;
  p = p * x + 1.0f / 6;
  p = p * x + 0.5f;
  p = (p * x) * x + x;
  return x > -0.5f ? p : exponential<precise>(x) - 1.0f;
}

// log(1 + t) for 0 <= t <= 1: 2 artanh(t / (2 + t)), whose argument is at most 1/3.
template <bool precise>
__device__ __forceinline__ float log_one_plus(float t) {
  const float z = t * reciprocal<precise>(t + 2.0f), w = z * z;
  float p = 2.0f / 15;
  p = p * w + 2.0f / 13;
  p = p * w + 2.0f / 11;
  p = p * w + 2.0f / 9;
  p = p * w + 2.0f / 7;
  p = p * w + 2.0f / 5;
  p = p * w + 2.0f / 3;
  return (p * w) * z + z + z;
}

template <bool precise>
__device__ __forceinline__ float hyperbolic_tangent(float x) {
  const float w = x * x;
  float p = -5.70498872745e-3f;  // Cephes' polynomial, for |x| < 0.625
  p = p * w + 2.06390887954e-2f;
  p = p * w - 5.37397155531e-2f;
  p = p * w + 1.33314422036e-1f;
  p = p * w - 3.33332819422e-1f;
  const float small = (p * w) * x + x;
  // At most 20, where the tangent is 1, so that the exponential stays finite.
  const float magnitude = at_most(20.0f, fabsf(x));
  const float large = 1.0f - 2.0f * reciprocal<precise>(exponential<precise>(magnitude * 2.0f) + 1.0f);
  // Written so that NaN takes the polynomial, which keeps it.
  return magnitude >= 0.625f ? (x < 0.0f ? -large : large) : small;
}

// Phi(x), the standard normal distribution function, with density_ratio = e^(-x^2/2), which its derivative needs too.
template <bool precise>
__device__ __forceinline__ float normal_distribution(float x, float density_ratio) {
  // Phi(-|x|) e^(x^2/2) as a polynomial in t = 1 / (1 + 0.28 |x|), minimax in relative error (7e-8) for |x| up to 20: the tail
  // keeps its precision where 1 + erf would cancel.
  const float t = reciprocal<precise>(at_most(40.0f, fabsf(x)) * 0.28f + 1.0f);
  float p = 0.02476531918386338f;
  p = p * t - 0.09292806815239817f;
  p = p * t + 0.0894377172519978f;
  p = p * t - 0.0014866057217466466f;
  p = p * t + 0.0685389130958353f;
  p = p * t + 0.08565258862633432f;
  p = p * t + 0.10254726007450049f;
  p = p * t + 0.11177296471314066f;
  p = p * t + 0.11169994749771935f;
  const float tail = density_ratio * (p * t);
  return x < 0.0f ? tail : 1.0f - tail;
}

template <int count, class F>
__device__ __forceinline__ void each(float (&values)[count], F f) {
#pragma unroll
  for (int i = 0; i < count; ++i) values[i] = f(values[i]);
}

// values[i] = act(values[i])
template <bool precise, int count>
__device__ __forceinline__ void activate(Activation activation, float parameter, float (&values)[count]) {
  switch (activation) {
    case Activation::identity: return;
    case Activation::relu: return each(values, [](float u) { return u <= 0.0f ? 0.0f : u; });
    case Activation::leaky_relu: return each(values, [=](float u) { return u > 0.0f ? u : u * parameter; });
    case Activation::sigmoid: return each(values, [](float u) { return logistic<precise>(u); });
    case Activation::tanh: return each(values, [](float u) { return hyperbolic_tangent<precise>(u); });
    case Activation::silu: return each(values, [](float u) { return u * logistic<precise>(u); });
    case Activation::gelu:
      return each(values, [](float u) { return u * normal_distribution<precise>(u, exponential<precise>(u * u * -0.5f)); });
    case Activation::gelu_tanh:  // u/2 (1 + tanh(k (u + c u^3))), k = sqrt(2 / pi), c = 0.044715
      return each(values, [](float u) {
        const float inner = 0.7978845608028653559f * (u + 0.044715f * (u * u * u));
        return (u * 0.5f) * (1.0f + hyperbolic_tangent<precise>(inner));
      });
    case Activation::elu:
      return each(values, [=](float u) { return u > 0.0f ? u : exponential_minus_one<precise>(u) * parameter; });
    case Activation::hardswish:
      return each(values, [](float u) {
        const float gate = u + 3.0f;
        return u * (gate < 0.0f ? 0.0f : at_most(6.0f, gate)) * (1.0f / 6);
      });
    case Activation::mish:  // u tanh(log(1 + e)), e = e^u: with n = e (e + 2) the tangent is n / (n + 2). Above 20 it is 1.
      return each(values, [](float u) {
        const float e = exponential<precise>(at_most(20.0f, u)), n = e * (e + 2.0f);
        return u > 20.0f ? u : u * (n * reciprocal<precise>(n + 2.0f));
      });
    case Activation::softplus:  // log(1 + e^u) = max(u, 0) + log(1 + e^-|u|), and u itself above 20 as torch has it
      return each(values, [](float u) {
        return u > 20.0f ? u : (u < 0.0f ? 0.0f : u) + log_one_plus<precise>(exponential<precise>(-fabsf(u)));
      });
  }
}

template <int count, class F>
__device__ __forceinline__ void each(float (&gradients)[count], const float (&values)[count], F f) {
#pragma unroll
  for (int i = 0; i < count; ++i) gradients[i] = f(gradients[i], values[i]);
}

// gradients[i] *= act'(values[i])
template <bool precise, int count>
__device__ __forceinline__ void scale_by_slope(Activation activation, float parameter, float (&gradients)[count],
                                               const float (&values)[count]) {
  switch (activation) {
    case Activation::identity: return;
    case Activation::relu: return each(gradients, values, [](float g, float u) { return u <= 0.0f ? 0.0f : g; });
    case Activation::leaky_relu: return each(gradients, values, [=](float g, float u) { return u > 0.0f ? g : g * parameter; });
    case Activation::sigmoid:
      return each(gradients, values, [](float g, float u) {
        const float s = logistic<precise>(u);
        return g * (s * (1.0f - s));
      });
    case Activation::tanh:
      return each(gradients, values, [](float g, float u) {
        const float t = hyperbolic_tangent<precise>(u);
        return g * (1.0f - t * t);
      });
    case Activation::silu:
      return each(gradients, values, [](float g, float u) {
        const float s = logistic<precise>(u);
        return g * (s * (1.0f + u * (1.0f - s)));
      });
    case Activation::gelu:
      return each(gradients, values, [](float g, float u) {
        const float density_ratio = exponential<precise>(u * u * -0.5f);
        const float density = density_ratio * 0.3989422804014326779f;  // 1 / sqrt(2 pi)
        return g * (normal_distribution<precise>(u, density_ratio) + u * density);
      });
    case Activation::gelu_tanh:
      return each(gradients, values, [](float g, float u) {
        const float inner = 0.7978845608028653559f * (u + 0.044715f * (u * u * u));
        const float t = hyperbolic_tangent<precise>(inner);
        const float slope = 0.7978845608028653559f * (1.0f + float(3 * 0.044715) * (u * u));
        return g * (0.5f * (1.0f + t) + 0.5f * u * (1.0f - t * t) * slope);
      });
    case Activation::elu:
      return each(gradients, values, [=](float g, float u) { return u <= 0.0f ? g * parameter * exponential<precise>(u) : g; });
    case Activation::hardswish:
      return each(gradients, values, [](float g, float u) {
        const float slope = u < 3.0f ? g * (u * (1.0f / 3) + 0.5f) : g;
        return u <= -3.0f ? 0.0f : slope;
      });
    case Activation::mish:
      return each(gradients, values, [](float g, float u) {
        const float e = exponential<precise>(at_most(20.0f, u)), n = e * (e + 2.0f);
        const float d = reciprocal<precise>(n + 2.0f);
        return u > 20.0f ? g : g * (n * d + u * (4.0f * e * (1.0f + e)) * d * d);
      });
    case Activation::softplus:
      return each(gradients, values, [](float g, float u) { return u > 20.0f ? g : g * logistic<precise>(u); });
  }
}

}  // namespace fastdl::cuda
