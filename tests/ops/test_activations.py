"""The activations of the kernels where a formula breaks: zeros, infinities, NaN, subnormals, overflowing exp.

Evaluation-mode batch_norm with mean 0, variance 1 and eps 0 hands the activation exactly the input.
"""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

import fastdl
from fastdl.ops import batch_norm
from fastdl.reference import ACTIVATIONS, activate
from tests.support.accuracy import assert_as_right_as_torch, assert_nonfinite_like
from tests.support.backends import BACKENDS_UNDER_TEST, FLOATING, short

INFINITY, NAN = float("inf"), float("nan")
SPECIAL = (0.0, -0.0, INFINITY, -INFINITY, NAN)
MAGNITUDES = (
    1e-42,
    1e-38,
    1e-7,
    1e-3,
    0.1,
    0.5,
    1.0,
    2.0,
    2.9,
    3.0,
    3.1,
    5.0,
    6.0,
    8.3,
    9.0,
    10.0,
    15.0,
    16.7,
    17.5,
    19.9,
    20.0,
)
MAGNITUDES += (20.1, 44.0, 45.0, 50.0, 87.0, 88.0, 88.8, 90.0, 100.0, 104.0, 200.0, 709.0, 710.0, 746.0, 1e3, 1e4)
POINTS = SPECIAL + tuple(sign * magnitude for magnitude, sign in itertools.product(MAGNITUDES, (1, -1)))
DENSE = torch.linspace(-12, 12, 24000, dtype=torch.float64)
WINDOW = 1000


def rows() -> list[Any]:
    return [
        pytest.param(activation, parameter, dtype, name, id=f"{activation}-{parameter}-{short(dtype)}-{name}")
        for activation in ACTIVATIONS
        for parameter in ((None, 0.3, 2.0) if activation in ("leaky_relu", "elu") else (None,))
        for name, backend in BACKENDS_UNDER_TEST.items()
        for dtype in sorted(backend.dtypes(), key=str)
    ]


def value_and_slope(x: Tensor, activation: str, parameter: float | None, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    x = x.detach().to(dtype, copy=True).requires_grad_()
    output = activate(x, activation, parameter)
    return output.detach(), torch.autograd.grad(output, x, torch.ones_like(output))[0]


def fused_value_and_slope(x: Tensor, activation: str, parameter: float | None, backend: str) -> tuple[Tensor, Tensor]:
    x = x.view(1, 1, -1).clone().requires_grad_()
    mean, variance = torch.zeros(1, dtype=x.dtype, device=x.device), torch.ones(1, dtype=x.dtype, device=x.device)
    with fastdl.use_backend(backend):
        output = batch_norm(x, mean, variance, eps=0.0, activation=activation, activation_param=parameter)
    (slope,) = torch.autograd.grad(output, x, torch.ones_like(output))
    return output.detach().flatten(), slope.flatten()


@pytest.mark.parametrize(("activation", "parameter", "dtype", "backend"), rows())
def test_value_and_slope_at_special_numbers(
    activation: str, parameter: float | None, dtype: torch.dtype, backend: str
) -> None:
    device = BACKENDS_UNDER_TEST[backend].device()
    x = torch.tensor(POINTS, dtype=torch.float64).to(dtype).to(device)
    ours = fused_value_and_slope(x, activation, parameter, backend)
    expected = value_and_slope(x, activation, parameter, dtype)
    truth = value_and_slope(x, activation, parameter, torch.float64)
    limits = value_and_slope(torch.tensor([1e4, -1e4]), activation, parameter, torch.float64)
    loops = [value_and_slope(x.to("cpu"), activation, parameter, other) for other in FLOATING]
    nan_in_some_loop = {
        "value": torch.stack([value.isnan() for value, _ in loops]).any(0),
        "slope": torch.stack([slope.isnan() for _, slope in loops]).any(0),
    }
    for name, result, by_torch, true, limit in zip(("value", "slope"), ours, expected, truth, limits, strict=True):
        result, by_torch, true = (t.to("cpu", torch.float64) for t in (result, by_torch, true))
        for at, sign in ((2, 0), (3, 1)):
            if by_torch[at].isnan() or result[at].isnan():
                # torch's formula is inf * 0 here, in some of its loops: which ones depends on the dtype and the
                # processor, so that its NaN may be another dtype's. The limit is right too.
                at_limit = limit[sign] * INFINITY if limit[sign].abs() > 1e3 else limit[sign].round()
                assert result[at] == at_limit or (result[at].isnan() and nan_in_some_loop[name][at])
                by_torch[at] = result[at]
        if name == "slope" and activation in ("elu", "hardswish"):
            result[4] = by_torch[4]  # torch's own vector and scalar loops disagree about the slope of these two at NaN
        assert_nonfinite_like(f"{activation}: {name} at the special points", result, by_torch)
        finite = by_torch.isfinite() & true.isfinite()
        # Relative to the value, or to the argument's own rounding where the formula cancels (1 + erf(u) below 0).
        size = torch.maximum(true.abs(), x.to("cpu", torch.float64).abs().clamp(max=1.0).nan_to_num())
        # In float64 the truth is rounded too, and torch's float64 formulas lose some digits themselves.
        slack = (64 if dtype == torch.float64 else 4) * torch.finfo(dtype).eps
        allowed = 1.5 * (by_torch - true).abs() + slack * size + torch.finfo(dtype).tiny
        wrong = finite & ~((result - true).abs() <= allowed)
        at = int(wrong.nonzero()[0]) if wrong.any() else 0
        assert not wrong.any(), (
            f"{activation}({x[at]:g}): {name} {result[at]:.9g}, torch {by_torch[at]:.9g}, truth {true[at]:.9g}"
        )


@pytest.mark.parametrize(("activation", "parameter", "dtype", "backend"), rows())
def test_value_and_slope_over_the_range_that_norms_give(
    activation: str, parameter: float | None, dtype: torch.dtype, backend: str
) -> None:
    """By the rule of every op, in windows of one unit, so that no weak spot hides behind a large value elsewhere."""
    device = BACKENDS_UNDER_TEST[backend].device()
    x = DENSE.to(dtype).to(device)
    ours = fused_value_and_slope(x, activation, parameter, backend)
    expected = value_and_slope(x, activation, parameter, dtype)
    truth = value_and_slope(x, activation, parameter, torch.float64)
    for name, result, by_torch, true in zip(("value", "slope"), ours, expected, truth, strict=True):
        for window in range(0, len(x), WINDOW):
            part = slice(window, window + WINDOW)
            # Tails such as gelu's far below 0 are worth no more than the rounding of the argument, or of the 1 in it.
            least = 1.0 if float(x[part].abs().max()) > 0.5 else 0.5
            assert_as_right_as_torch(
                f"{activation}: {name} in [{x[part][0]:.3g}, {x[part][-1]:.3g}]",
                result[part],
                true[part],
                by_torch[part],
                floor=least,
            )


@pytest.mark.parametrize("backend", BACKENDS_UNDER_TEST)
@pytest.mark.parametrize("activation", ["relu", "leaky_relu", "elu", "hardswish"])
def test_slope_at_a_kink_is_torchs(activation: str, backend: str) -> None:
    device = BACKENDS_UNDER_TEST[backend].device()
    x = torch.tensor([0.0, -0.0, 3.0, -3.0], device=device)
    _, slope = fused_value_and_slope(x, activation, None, backend)
    _, expected = value_and_slope(x, activation, None, torch.float32)
    assert slope.tolist() == pytest.approx(expected.tolist(), rel=1e-6)
