"""The references against torch's own ops, both in float64: what makes them fit to be every other test's truth."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.support.operators import OPERATORS
from tests.support.problems import Case, Operator, make_problem, solve

# Two right answers in float64 differ by some units in the last place of what was summed: 1e-12 of it is thousands.
RELATIVE = 1e-12


def rows() -> list[Any]:
    return [
        pytest.param(operator, case, id=f"{operator.name}-{case.name}")
        for operator in OPERATORS.values()
        for case in operator.cases
        if torch.float64 in case.dtypes and not case.slow
    ]


@pytest.mark.parametrize(("operator", "case"), rows())
def test_reference_is_torchs_composition_in_float64(operator: Operator, case: Case) -> None:
    problem = make_problem(operator, case, torch.float64)
    reference = solve(operator, operator.reference, case, problem)
    expected = solve(operator, operator.torch, case, problem)
    assert reference.keys() == expected.keys()
    cancelling = dict(operator.cancelling)
    # A mean of 1e4 costs four of the sixteen digits before the first sum.
    relative = RELATIVE * (1e4 if case.values == "shifted" else 1)
    for name, result in reference.items():
        other = expected[name]
        assert result.shape == other.shape, name
        if not problem.tensors["input"].numel():
            assert not result.isnan().any(), name
            continue
        assert result.isfinite().all(), name
        natural = expected[cancelling[name]] if name in cancelling else other
        scale = max(float(natural.abs().max()), natural_scale(operator, case, expected) if "input" in name else 0.0)
        assert float((result - other).abs().max()) <= relative * scale, name


def natural_scale(operator: Operator, case: Case, expected: dict[str, torch.Tensor]) -> float:
    """The size of what cancels in the input's gradient where a group has few values, or all of them are the same."""
    deviation = float(max(case.eps, 1e-20)) ** -0.5 if case.values in ("constant", "zero", "tiny") else 1.0
    return deviation * float(expected["output"].abs().max())
