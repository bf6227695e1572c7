"""The judge of dropout's benchmark: random answers are held to what dropout is."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from bench.bench_dropout import BENCHMARK, Judge, P, eager, ours
from bench.cases import Case
from bench.operands import make_operands

CASES = {case.variant: case for case in BENCHMARK.cases if case.size == (8, 197, 768) and case.dtype == "float32"}


def judge_of(case: Case) -> Judge:
    small = Case((8, 40, 64), case.layout, case.dtype, case.activation, case.network, variant=case.variant)
    operands = make_operands(BENCHMARK, small, torch.device("cpu"), 1)
    return Judge(BENCHMARK, small, operands)


@pytest.mark.parametrize("variant", CASES)
@pytest.mark.parametrize("contender", [ours, eager])
def test_dropout_is_accepted(contender: Callable[[Case], Callable[..., Tensor]], variant: str) -> None:
    torch.manual_seed(0)
    assert judge_of(CASES[variant]).complaint(contender(CASES[variant])) is None


class _WrongGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx, input: Tensor) -> Tensor:
        return F.dropout(input, P)

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:
        return F.dropout(grad, P)


@pytest.mark.parametrize(
    ("wrong", "complaint"),
    [
        (lambda x, r: F.dropout(x, P, training=False) + r, "neither dropped nor kept and scaled"),
        (lambda x, r: F.dropout(x, P) * (1 - P) + r, "neither dropped nor kept and scaled"),
        (lambda x, r: F.dropout(x, P), "neither dropped nor kept and scaled"),
        (lambda x, r: F.dropout(x, 2 * P) * (1 - 2 * P) / (1 - P) + r, "of the values are dropped, expected 0.1"),
        (lambda x, r: x / (1 - P) + r, "of the values are dropped, expected 0.1"),
        (lambda x, r: _WrongGradient.apply(x) + r, "the gradient of the input does not fit what was dropped"),
        (lambda x, r: F.dropout(x, P) + r.detach() + 2 * (r - r.detach()), "the gradient of the residual"),
    ],
)
def test_what_is_not_dropout_is_told(wrong: Callable[[Tensor, Tensor], Tensor], complaint: str) -> None:
    torch.manual_seed(0)
    found = judge_of(CASES["residual"]).complaint(wrong)
    assert found is not None
    assert complaint in found
