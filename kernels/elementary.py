"""Elementary functions of float32 tiles, from products, quotients and ``exp`` alone, so that the interpreter runs them.

They are the polynomials of ``csrc/cpu/elementary.h``, accurate to a few units in the last place. NaN and infinity go
through as torch lets them: conditions are written so that NaN takes the branch that keeps it.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def logistic(u):
    """1 / (1 + e^-u), from e^-|u|, so that nothing overflows and both tails are exact."""
    e = tl.exp(-tl.abs(u))
    reciprocal = 1.0 / (1.0 + e)
    return tl.where(u < 0, e * reciprocal, reciprocal)


@triton.jit
def exponential_minus_one(u):
    """e^u - 1 for u <= 0: Taylor's series to u^8 above -1/2, where the difference would cancel."""
    p = 1.0 / 40320
    p = p * u + 1.0 / 5040
    p = p * u + 1.0 / 720
    p = p * u + 1.0 / 120
    p = p * u + 1.0 / 24
    p = p * u + 1.0 / 6
    p = p * u + 0.5
    return tl.where(u > -0.5, (p * u) * u + u, tl.exp(u) - 1.0)


@triton.jit
def log_one_plus(t):
    """log(1 + t) for 0 <= t <= 1: 2 artanh(t / (2 + t)), whose argument is at most 1/3."""
    z = t / (t + 2.0)
    w = z * z
    p = 2.0 / 15
    p = p * w + 2.0 / 13
    p = p * w + 2.0 / 11
    p = p * w + 2.0 / 9
    p = p * w + 2.0 / 7
    p = p * w + 2.0 / 5
    p = p * w + 2.0 / 3
    return (p * w) * z + z + z


@triton.jit
def hyperbolic_tangent(u):
    """tanh(u): Cephes' polynomial below 0.625, 1 - 2 / (e^2|u| + 1) above."""
    magnitude = tl.abs(u)
    magnitude = tl.where(magnitude > 20.0, 20.0, magnitude)  # where it is 1, and the exponential still finite
    w = magnitude * magnitude
    p = -5.70498872745e-3
    p = p * w + 2.06390887954e-2
    p = p * w - 5.37397155531e-2
    p = p * w + 1.33314422036e-1
    p = p * w - 3.33332819422e-1
    small = (p * w) * u + u
    large = 1.0 - 2.0 / (tl.exp(2.0 * magnitude) + 1.0)
    large = tl.where(u < 0, -large, large)
    return tl.where(magnitude >= 0.625, large, small)


@triton.jit
def normal_distribution(u, density_ratio):
    """Phi(u), the standard normal distribution function, given e^(-u^2/2), which its derivative needs too.

    Phi(-|u|) e^(u^2/2) is a polynomial in 1 / (1 + 0.28 |u|), minimax in relative error (7e-8) up to |u| = 20: the tail
    keeps its precision where 1 + erf would cancel.
    """
    magnitude = tl.abs(u)
    t = 1.0 / (tl.where(magnitude > 40.0, 40.0, magnitude) * 0.28 + 1.0)
    p = 0.02476531918386338
    p = p * t - 0.09292806815239817
    p = p * t + 0.0894377172519978
    p = p * t - 0.0014866057217466466
    p = p * t + 0.0685389130958353
    p = p * t + 0.08565258862633432
    p = p * t + 0.10254726007450049
    p = p * t + 0.11177296471314066
    p = p * t + 0.11169994749771935
    tail = density_ratio * (p * t)
    return tl.where(u < 0, tail, 1.0 - tail)
