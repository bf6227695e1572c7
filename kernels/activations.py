"""The twelve activations: ``activate(u)``, and ``slope_times(g, u) = g act'(u)``, computed again instead of saved.

The order is that of ``fastdl.reference.activations``. Ties fall where torch has them (relu'(0) = 0, hardswish'(3) = 1).
"""

from __future__ import annotations

import triton
import triton.language as tl

from fastdl.kernels.elementary import (
    exponential_minus_one,
    hyperbolic_tangent,
    log_one_plus,
    logistic,
    normal_distribution,
)

# A kernel knows an activation by its place here: a constant of the compilation, so that only one branch is compiled.
NAMES = (
    "identity", "relu", "leaky_relu", "sigmoid", "tanh", "silu",
    "gelu", "gelu_tanh", "elu", "hardswish", "mish", "softplus",
)  # fmt: skip
NUMBERS = {name: number for number, name in enumerate(NAMES)}

IDENTITY = tl.constexpr(NUMBERS["identity"])
RELU = tl.constexpr(NUMBERS["relu"])
LEAKY_RELU = tl.constexpr(NUMBERS["leaky_relu"])
SIGMOID = tl.constexpr(NUMBERS["sigmoid"])
TANH = tl.constexpr(NUMBERS["tanh"])
SILU = tl.constexpr(NUMBERS["silu"])
GELU = tl.constexpr(NUMBERS["gelu"])
GELU_TANH = tl.constexpr(NUMBERS["gelu_tanh"])
ELU = tl.constexpr(NUMBERS["elu"])
HARDSWISH = tl.constexpr(NUMBERS["hardswish"])
MISH = tl.constexpr(NUMBERS["mish"])
SOFTPLUS = tl.constexpr(NUMBERS["softplus"])

ROOT_2_OVER_PI = tl.constexpr(0.7978845608028654)
ROOT_1_OVER_2_PI = tl.constexpr(0.3989422804014327)


@triton.jit
def activate(u, parameter, ACTIVATION: tl.constexpr):
    """The activation of a float32 tile; ``parameter`` is LeakyReLU's slope or ELU's alpha."""
    if ACTIVATION == RELU:
        value = tl.where(u <= 0, 0.0, u)
    elif ACTIVATION == LEAKY_RELU:
        value = tl.where(u > 0, u, u * parameter)
    elif ACTIVATION == SIGMOID:
        value = logistic(u)
    elif ACTIVATION == TANH:
        value = hyperbolic_tangent(u)
    elif ACTIVATION == SILU:
        value = u * logistic(u)
    elif ACTIVATION == GELU:
        value = u * normal_distribution(u, tl.exp(u * u * -0.5))
    elif ACTIVATION == GELU_TANH:
        inner = (u + (u * u * u) * 0.044715) * ROOT_2_OVER_PI
        value = (u * 0.5) * (1.0 + hyperbolic_tangent(inner))
    elif ACTIVATION == ELU:
        value = tl.where(u > 0, u, exponential_minus_one(tl.where(u > 0, 0.0, u)) * parameter)
    elif ACTIVATION == HARDSWISH:
        gate = u + 3.0
        gate = tl.where(gate < 0, 0.0, gate)
        gate = tl.where(gate > 6, 6.0, gate)
        value = u * gate * (1.0 / 6)
    elif ACTIVATION == MISH:
        # u tanh(log(1 + e)), e = e^u: with n = e (e + 2) the tangent is n / (n + 2). Above 20 it is 1.
        e = tl.exp(tl.where(u > 20, 20.0, u))
        n = e * (e + 2.0)
        value = tl.where(u > 20, u, u * (n / (n + 2.0)))
    elif ACTIVATION == SOFTPLUS:
        # max(u, 0) + log(1 + e^-|u|), and u itself above 20, as torch has it.
        value = tl.where(u > 20, u, tl.where(u < 0, 0.0, u) + log_one_plus(tl.exp(-tl.abs(u))))
    else:
        tl.static_assert(ACTIVATION == IDENTITY)
        value = u
    return value


@triton.jit
def slope_times(g, u, parameter, ACTIVATION: tl.constexpr):
    """``g act'(u)`` for float32 tiles."""
    if ACTIVATION == RELU:
        value = tl.where(u <= 0, 0.0, g)
    elif ACTIVATION == LEAKY_RELU:
        value = tl.where(u > 0, g, g * parameter)
    elif ACTIVATION == SIGMOID:
        s = logistic(u)
        value = g * (s * (1.0 - s))
    elif ACTIVATION == TANH:
        t = hyperbolic_tangent(u)
        value = g * (1.0 - t * t)
    elif ACTIVATION == SILU:
        s = logistic(u)
        value = g * (s * (1.0 + u * (1.0 - s)))
    elif ACTIVATION == GELU:
        density_ratio = tl.exp(u * u * -0.5)
        value = g * (normal_distribution(u, density_ratio) + u * (density_ratio * ROOT_1_OVER_2_PI))
    elif ACTIVATION == GELU_TANH:
        t = hyperbolic_tangent((u + (u * u * u) * 0.044715) * ROOT_2_OVER_PI)
        inner_slope = ((u * u) * (3 * 0.044715) + 1.0) * ROOT_2_OVER_PI
        value = g * (0.5 * (1.0 + t) + 0.5 * u * (1.0 - t * t) * inner_slope)
    elif ACTIVATION == ELU:
        value = tl.where(u <= 0, g * parameter * tl.exp(tl.where(u > 0, 0.0, u)), g)
    elif ACTIVATION == HARDSWISH:
        inside = g * (u * (1.0 / 3) + 0.5)
        value = tl.where(u <= -3, 0.0, tl.where(u < 3, inside, g))
    elif ACTIVATION == MISH:
        e = tl.exp(tl.where(u > 20, 20.0, u))
        n = e * (e + 2.0)
        d = 1.0 / (n + 2.0)
        value = tl.where(u > 20, g, g * (n * d + u * (4.0 * e * (1.0 + e)) * d * d))
    elif ACTIVATION == SOFTPLUS:
        value = tl.where(u > 20, g, g * logistic(u))
    else:
        tl.static_assert(ACTIVATION == IDENTITY)
        value = g
    return value
