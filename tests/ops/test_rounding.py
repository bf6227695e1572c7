"""Half-precision results are rounded to nearest: off as often up as down, where truncation is off by half a unit."""

from __future__ import annotations

import pytest
import torch

import fastdl
from tests.support import batch_norm, group_norm
from tests.support.backends import BACKENDS_UNDER_TEST, short
from tests.support.problems import Case, Operator, make_problem, solve

SHAPE = (4, 32, 16, 15)
ROWS = [
    (
        operator,
        make(
            f"rounding_{layout}_{order}",
            SHAPE,
            *groups,
            layout=layout,
            grad_layout=layout,
            order=order,
            activation="silu",
        ),
    )
    for operator, make, groups in (
        (group_norm.OPERATOR, group_norm.row, (8,)),
        (batch_norm.OPERATOR, batch_norm.row, ()),
    )
    for layout in ("contiguous", "channels_last")
    for order in ("norm_act", "act_norm")
]


@pytest.mark.parametrize("backend", BACKENDS_UNDER_TEST)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=short)
@pytest.mark.parametrize(("operator", "case"), ROWS, ids=lambda value: value.name)
def test_half_precision_is_rounded_to_nearest(operator: Operator, case: Case, dtype: torch.dtype, backend: str) -> None:
    problem = make_problem(operator, case, dtype, BACKENDS_UNDER_TEST[backend].device())
    truth = solve(operator, operator.reference, case, problem, double=True)
    with fastdl.use_backend(backend):
        ours = solve(operator, operator.ours, case, problem)
    for name in ("output", "gradient of input"):
        unit = torch.finfo(dtype).eps * 2.0 ** truth[name].abs().clamp(min=1e-3).log2().floor()
        off = (ours[name].double() - truth[name]) / unit
        large = truth[name].abs() > 0.05  # float32's own rounding is far below one unit there
        # Of 30,000 errors spread evenly over one unit the mean is within 0.002 of 0, the largest little over a half.
        assert abs(float(off[large].mean())) < 0.02, name
        assert abs(float((off * truth[name].sign())[large].mean())) < 0.02, name
        assert float(off[large].abs().max()) < 0.6, name


@pytest.mark.parametrize("backend", BACKENDS_UNDER_TEST)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=short)
@pytest.mark.parametrize("op", ["group_norm", "batch_norm"])
def test_gradients_of_parameters_are_rounded_to_nearest(op: str, dtype: torch.dtype, backend: str) -> None:
    """They are too few for statistics: a bias's gradient is the sum of 1 and three quarters of a unit, exactly."""
    device = BACKENDS_UNDER_TEST[backend].device()
    x = torch.randn(2, 4, 3, 3, device=device, dtype=dtype)
    bias = torch.zeros(4, device=device, dtype=dtype, requires_grad=True)
    unit = torch.finfo(dtype).eps
    grad = torch.zeros_like(x)
    grad[0, :, 0, 0], grad[1, :, 1, 1], grad[1, :, 2, 0] = 1.0, unit / 2, unit / 4
    grad[:, 1::2] *= -1
    with fastdl.use_backend(backend):
        if op == "group_norm":
            output = fastdl.ops.group_norm(x, 2, None, bias)
        else:
            output = fastdl.ops.batch_norm(x, None, None, None, bias, True)
        (gradient,) = torch.autograd.grad(output, bias, grad)
    expected = torch.tensor([1 + unit, -1 - unit] * 2, device=device, dtype=dtype)
    assert torch.equal(gradient, expected)
