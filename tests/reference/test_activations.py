"""The reference activations against their definitions, written out once more with the standard library's functions."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch

from fastdl.reference import ACTIVATIONS, DEFAULT_PARAMETERS, activate

POINTS = (-30.0, -8.0, -3.0, -2.999, -1.0, -0.25, -1e-3, 0.0, 1e-3, 0.25, 1.0, 2.999, 3.0, 8.0, 19.9, 30.0)

DEFINITIONS: dict[str, Callable[[float, float], float]] = {
    "identity": lambda u, p: u,
    "relu": lambda u, p: max(u, 0.0),
    "leaky_relu": lambda u, p: u if u > 0 else p * u,
    "sigmoid": lambda u, p: 1 / (1 + math.exp(-u)),
    "tanh": lambda u, p: math.tanh(u),
    "silu": lambda u, p: u / (1 + math.exp(-u)),
    "gelu": lambda u, p: u * 0.5 * math.erfc(-u / math.sqrt(2)),
    "gelu_tanh": lambda u, p: u * 0.5 * (1 + math.tanh(math.sqrt(2 / math.pi) * (u + 0.044715 * u**3))),
    "elu": lambda u, p: u if u > 0 else p * math.expm1(u),
    "hardswish": lambda u, p: u * min(max(u + 3, 0), 6) / 6,
    "mish": lambda u, p: u * math.tanh(math.log1p(math.exp(u))),
    "softplus": lambda u, p: math.log1p(math.exp(u)),
}


def test_the_twelve_activations_are_all_defined() -> None:
    assert set(ACTIVATIONS) == set(DEFINITIONS)
    assert len(ACTIVATIONS) == 12


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("parameter", [None, 0.3])
def test_value_and_slope_are_those_of_the_definition(activation: str, parameter: float | None) -> None:
    value = DEFAULT_PARAMETERS.get(activation, 0.0) if parameter is None else parameter
    u = torch.tensor(POINTS, dtype=torch.float64, requires_grad=True)
    output = activate(u, activation, parameter)
    expected = [DEFINITIONS[activation](point, value) for point in POINTS]
    # torch's softplus is u itself above 20, which is 1e-9 off at 20 and nothing at 30.
    assert output.tolist() == pytest.approx(expected, rel=1e-12, abs=1e-13)
    (slope,) = torch.autograd.grad(output.sum(), u)
    for point, measured in zip(POINTS, slope.tolist(), strict=True):
        if point in (0.0, 3.0, -3.0):
            continue  # relu, leaky_relu, elu and hardswish have no derivative there
        step = 1e-5 * max(1.0, abs(point))
        rise = DEFINITIONS[activation](point + step, value) - DEFINITIONS[activation](point - step, value)
        assert measured == pytest.approx(rise / (2 * step), rel=1e-6, abs=1e-8)


def test_the_default_parameters_are_torchs() -> None:
    u = torch.linspace(-3, 3, 25, dtype=torch.float64)
    torch.testing.assert_close(activate(u, "leaky_relu"), torch.nn.LeakyReLU()(u), rtol=0, atol=0)
    torch.testing.assert_close(activate(u, "elu"), torch.nn.ELU()(u), rtol=0, atol=0)
