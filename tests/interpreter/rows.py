"""A selection of the parity rows of tests/ops, for the interpreter, which takes a third of a second for each.

Each row in one dtype, in turn; of the sweeps a part. The whole table is run by the slow test.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import torch

from tests.support import attention, attention_cases, batch_norm, group_norm, norm_act_conv, row_norms
from tests.support.backends import short
from tests.support.problems import Case, Operator, check_parity

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
MOST_VALUES = 12000
MOST_CHANNELS = 100


def selected() -> Iterator[Any]:
    turn = 0
    for module in (group_norm, batch_norm):
        for cases in chosen_cases(module):
            for case in cases:
                served = [dtype for dtype in DTYPES if dtype in case.dtypes]
                if case.slow or torch.Size(case.shape).numel() > MOST_VALUES or case.shape[1] > MOST_CHANNELS:
                    continue
                dtype = served[turn % len(served)]
                turn += 1
                yield pytest.param(
                    module.OPERATOR, case, dtype, id=f"{module.OPERATOR.name}-{case.name}-{short(dtype)}"
                )


def chosen_cases(module: Any) -> Iterator[Sequence[Case]]:
    yield module.ACTIVATION_CASES[:: 1 if module is group_norm else 3]
    yield module.LAYOUT_CASES[:: 2 if module is group_norm else 3]
    yield module.RANK_CASES
    yield module.sweep()[::7]
    yield module.boundaries()[::7]
    yield module.EDGE_CASES
    yield module.VALUE_CASES[::3]
    yield module.ORDER_CASES[::3]


@pytest.mark.parametrize(("operator", "case", "dtype"), list(selected()))
def test_parity(operator: Operator, case: Case, dtype: torch.dtype) -> None:
    check_parity(operator, case, dtype, "triton")


def selected_row_norms() -> Iterator[Any]:
    """The two norms over rows share their kernels, and the rows of the tables."""
    turn = 0
    for first, operator in enumerate((row_norms.LAYER_NORM, row_norms.RMS_NORM)):
        for cases, step in (
            (row_norms.LAYOUT_CASES, 8), (row_norms.RANK_CASES, 3), (row_norms.sweep(), 11), (row_norms.EDGE_CASES, 3),
            (row_norms.VALUE_CASES, 7),
        ):  # fmt: skip
            for case in cases[first::step]:
                served = [dtype for dtype in DTYPES if dtype in case.dtypes]
                if case.slow or torch.Size(case.shape).numel() > MOST_VALUES:
                    continue
                dtype = served[turn % len(served)]
                turn += 1
                yield pytest.param(operator, case, dtype, id=f"{operator.name}-{case.name}-{short(dtype)}")


@pytest.mark.parametrize(("operator", "case", "dtype"), list(selected_row_norms()))
def test_row_norms(operator: Operator, case: Case, dtype: torch.dtype) -> None:
    check_parity(operator, case, dtype, "triton")


def selected_norm_act_conv() -> Iterator[Any]:
    """Through the public op, which also takes what the kernels leave to torch's convolution."""
    chosen = (norm_act_conv.NORM_CASES[::4], norm_act_conv.ACTIVATION_CASES[::5], norm_act_conv.CONVOLUTION_CASES[::3])
    for turn, case in enumerate(case for cases in chosen for case in cases):
        served = [dtype for dtype in DTYPES if dtype in case.dtypes]
        dtype = served[turn % len(served)]
        yield pytest.param(case, dtype, id=f"{case.name}-{short(dtype)}")


@pytest.mark.parametrize(("case", "dtype"), list(selected_norm_act_conv()))
def test_norm_act_conv(case: Case, dtype: torch.dtype) -> None:
    check_parity(norm_act_conv.OPERATOR, case, dtype, "triton")


# Every kind of layout, mask, window and option; of the sweeps over sizes a part, and nothing that takes seconds.
MOST_WEIGHTS = 60000


def selected_attention() -> Iterator[Any]:
    turn = 0
    for cases, step in (
        (attention_cases.LAYOUT_CASES, 3), (attention_cases.LENGTH_CASES, 4), (attention_cases.FEATURE_CASES, 6),
        (attention_cases.HEAD_CASES, 2), (attention_cases.WINDOW_CASES, 3), (attention_cases.MASK_CASES, 4),
        (attention_cases.OPTION_CASES, 3), (attention_cases.DROPOUT_CASES, 3), (attention_cases.VALUE_CASES, 3),
        (attention_cases.EMPTY_CASES, 2),
    ):  # fmt: skip
        for case in cases[::step]:
            served = [dtype for dtype in DTYPES if dtype in case.dtypes]
            if case.slow or case.numbers > MOST_WEIGHTS:
                continue
            dtype = served[turn % len(served)]
            turn += 1
            yield pytest.param(case, dtype, id=f"attention-{case.name}-{short(dtype)}")


@pytest.mark.parametrize(("case", "dtype"), list(selected_attention()))
def test_attention(case: attention.Case, dtype: torch.dtype) -> None:
    attention.check_parity(case, dtype, "triton")
