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
