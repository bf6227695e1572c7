"""The references against torch's own ops, both in float64: what makes them fit to be every other test's truth."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.support.accuracy import largest
from tests.support.operators import OPERATORS
from tests.support.problems import Case, Operator, Problem, make_problem, solve

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
    expected = solve(operator, operator.torch, case, contiguous(problem))
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
        scale = max(largest(natural), size_of_what_cancels(case, expected))
        if name == "gradient of input":  # with two values a group, it is the little that is left of terms of this size
            scale = max(scale, largest(expected["output"]))
        assert largest(result - other) <= relative * scale, name


def contiguous(problem: Problem) -> Problem:
    """The layout does not change what is defined, but torch's channels_last GroupNorm loses digits at mean 1e4."""
    tensors = {name: tensor.clone(memory_format=torch.contiguous_format) for name, tensor in problem.tensors.items()}
    return Problem(tensors, problem.grad_output.clone(memory_format=torch.contiguous_format))


def size_of_what_cancels(case: Case, expected: dict[str, torch.Tensor]) -> float:
    """Where all values of a group are the same, what is left of them is rounding, divided by the root of eps."""
    same = case.values in ("constant", "zero", "tiny") or case.layout == "expanded_everywhere" or case.floor > 0
    if not same or not case.eps:
        return 0.0
    return case.eps**-0.5 * max(1.0, *(largest(result) for name, result in expected.items() if "input" not in name))
