// The twelve activations: value(u), and gradient(g, u) = g act'(u), which every kernel computes again from u instead of saving it.
// Conditions are written so that NaN passes, and ties fall where torch has them (relu'(0) = 0, hardswish'(3) = 1).
#pragma once

#include "../types.h"
#include "elementary.h"

namespace fastdl {

template <class A, Activation activation>
struct Activate;

#define FASTDL_ACTIVATION(NAME, VALUE, GRADIENT)                                                 \
  template <class A>                                                                             \
  struct Activate<A, Activation::NAME> {                                                         \
    using V = Vector<A>;                                                                         \
    static FASTDL_INLINE V value(V u, [[maybe_unused]] A parameter) VALUE static FASTDL_INLINE V \
        gradient(V g, [[maybe_unused]] V u, [[maybe_unused]] A parameter) GRADIENT               \
  };

FASTDL_ACTIVATION(identity, { return u; }, { return g; })

FASTDL_ACTIVATION(relu, { return u <= A(0) ? V{} : u; }, { return u <= A(0) ? V{} : g; })

FASTDL_ACTIVATION(leaky_relu, { return u > A(0) ? u : u * parameter; }, { return u > A(0) ? g : g * parameter; })

FASTDL_ACTIVATION(
    sigmoid, { return logistic<A>(u); },
    {
      V s = logistic<A>(u);
      return g * (s * (A(1) - s));
    })

FASTDL_ACTIVATION(
    tanh, { return hyperbolic_tangent<A>(u); },
    {
      V t = hyperbolic_tangent<A>(u);
      return g * (A(1) - t * t);
    })

FASTDL_ACTIVATION(
    silu, { return u * logistic<A>(u); },
    {
      V s = logistic<A>(u);
      return g * (s * (A(1) + u * (A(1) - s)));
    })

FASTDL_ACTIVATION(
    gelu, { return u * normal_distribution<A>(u, decaying_exponential<A>(u * u * A(-0.5))); },
    {
      V density_ratio = decaying_exponential<A>(u * u * A(-0.5));
      V density = density_ratio * A(0.3989422804014326779);  // 1 / sqrt(2 pi)
      return g * (normal_distribution<A>(u, density_ratio) + u * density);
    })

// u/2 (1 + tanh(k (u + c u^3))), k = sqrt(2 / pi), c = 0.044715
FASTDL_ACTIVATION(
    gelu_tanh,
    {
      V inner = A(0.7978845608028653559) * (u + A(0.044715) * (u * u * u));
      return (u * A(0.5)) * (A(1) + hyperbolic_tangent<A>(inner));
    },
    {
      V inner = A(0.7978845608028653559) * (u + A(0.044715) * (u * u * u));
      V t = hyperbolic_tangent<A>(inner);
      V slope = A(0.7978845608028653559) * (A(1) + A(3 * 0.044715) * (u * u));
      return g * (A(0.5) * (A(1) + t) + A(0.5) * u * (A(1) - t * t) * slope);
    })

FASTDL_ACTIVATION(
    elu, { return u > A(0) ? u : exponential_minus_one<A>(u > A(0) ? V{} : u) * parameter; },
    { return u <= A(0) ? g * parameter * decaying_exponential<A>(u > A(0) ? V{} : u) : g; })

FASTDL_ACTIVATION(
    hardswish,
    {
      V gate = u + A(3);
      gate = gate < A(0) ? V{} : gate;
      gate = gate > A(6) ? broadcast(A(6)) : gate;
      return u * gate * A(1.0 / 6);
    },
    {
      V slope = g * (u * A(1.0 / 3) + A(0.5));
      slope = u < A(3) ? slope : g;
      return u <= A(-3) ? V{} : slope;
    })

// u tanh(log(1 + e)), e = e^u: with n = e (e + 2) the tangent is n / (n + 2). Above 20 it is 1.
FASTDL_ACTIVATION(
    mish,
    {
      V e = exponential<A>(u > A(20) ? broadcast(A(20)) : u);
      V n = e * (e + A(2));
      return u > A(20) ? u : u * (n * reciprocal<A>(n + A(2)));
    },
    {
      V e = exponential<A>(u > A(20) ? broadcast(A(20)) : u);
      V n = e * (e + A(2));
      V d = reciprocal<A>(n + A(2));
      return u > A(20) ? g : g * (n * d + u * (A(4) * e * (A(1) + e)) * d * d);
    })

// log(1 + e^u) = max(u, 0) + log(1 + e^-|u|), and u itself above 20 as torch has it.
FASTDL_ACTIVATION(
    softplus,
    {
      V value = (u < A(0) ? V{} : u) + log_one_plus<A>(decaying_exponential<A>(-absolute<A>(u)));
      return u > A(20) ? u : value;
    },
    { return u > A(20) ? g : g * logistic<A>(u); })

#undef FASTDL_ACTIVATION

}  // namespace fastdl
