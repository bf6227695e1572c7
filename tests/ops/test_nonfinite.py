"""NaN and infinity go through as torch lets them: in output and gradients they stand where torch has them."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

import fastdl
from tests.support import batch_norm, group_norm
from tests.support.accuracy import assert_nonfinite_like
from tests.support.backends import BACKENDS_UNDER_TEST
from tests.support.problems import Case, Operator, make_problem, solve

SHAPE = (3, 6, 5, 4)
ROWS: list[tuple[Operator, Case]] = [
    (
        group_norm.OPERATOR,
        group_norm.row(
            f"nonfinite_{activation}_{layout}_{groups}", SHAPE, groups, activation=activation, layout=layout
        ),
    )
    for layout in ("contiguous", "channels_last")
    for activation, groups in (
        ("identity", 3),
        ("relu", 3),
        ("leaky_relu", 1),
        ("sigmoid", 6),
        ("tanh", 2),
        ("silu", 3),
        ("gelu", 3),
        ("gelu_tanh", 3),
        ("elu", 6),
        ("hardswish", 2),
        ("mish", 1),
        ("softplus", 3),
    )
]
ROWS += [
    (
        batch_norm.OPERATOR,
        batch_norm.row(
            f"nonfinite_{activation}_{layout}_{training}",
            SHAPE,
            activation=activation,
            layout=layout,
            training=training,
        ),
    )
    for layout in ("contiguous", "channels_last")
    for training in (True, False)
    for activation in ("identity", "relu", "silu", "hardswish", "elu", "softplus")
]
ROWS += [
    (group_norm.OPERATOR, group_norm.row("nonfinite_act_norm", SHAPE, 3, order="act_norm", activation="relu")),
    (group_norm.OPERATOR, group_norm.row("nonfinite_residual", SHAPE, 3, residual="contiguous", activation="silu")),
    (batch_norm.OPERATOR, batch_norm.row("nonfinite_act_norm", SHAPE, order="act_norm", activation="silu")),
    (batch_norm.OPERATOR, batch_norm.row("nonfinite_residual", SHAPE, residual="channels_last", activation="relu")),
]

WHERE = ("input", "gradient", "weight", "residual")


def parameters() -> list[Any]:
    return [
        pytest.param(operator, case, where, value, backend, id=f"{operator.name}-{case.name}-{where}-{value}-{backend}")
        for operator, case in ROWS
        for where in WHERE
        if where != "residual" or case.residual
        for value in ((float("nan"), float("inf"), float("-inf")) if where == "input" else (float("nan"),))
        for backend in BACKENDS_UNDER_TEST
    ]


@pytest.mark.parametrize(("operator", "case", "where", "value", "backend"), parameters())
def test_nonfinite_values_stand_where_torch_has_them(
    operator: Operator, case: Case, where: str, value: float, backend: str
) -> None:
    device = BACKENDS_UNDER_TEST[backend].device()
    problem = make_problem(operator, case, torch.float32, device)
    tensors = {name: tensor.clone() for name, tensor in problem.tensors.items()}
    problem = dataclasses.replace(problem, tensors=tensors, grad_output=problem.grad_output.clone())
    target = problem.grad_output if where == "gradient" else tensors[where]
    target[(1, 2, 3, 1) if target.ndim == 4 else (2,)] = value
    expected = solve(operator, operator.torch, case, problem)
    with fastdl.use_backend(backend):
        ours = solve(operator, operator.ours, case, problem)
    for name, result in ours.items():
        if name in operator.updated:
            # torch leaves an infinity where a mean of infinities makes a NaN; neither is of use.
            assert torch.equal(result.isfinite(), expected[name].isfinite()), name
        elif name == "output" or case.activation not in ("hardswish", "elu"):
            # Of these two, torch's own vector and scalar loops disagree about the slope at NaN.
            assert_nonfinite_like(f"{case.name}: {name}", result, expected[name])
    reached = any(not result.isfinite().all() for result in expected.values())
    assert reached or case.activation in ("relu", "hardswish")  # which are flat where they are closed


@pytest.mark.parametrize("backend", BACKENDS_UNDER_TEST)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_a_bad_sample_leaves_the_others_of_group_norm_alone(layout: str, backend: str) -> None:
    device = BACKENDS_UNDER_TEST[backend].device()
    case = group_norm.row(f"bad_sample_{layout}", SHAPE, 3, layout=layout)
    problem = make_problem(group_norm.OPERATOR, case, torch.float32, device)
    with fastdl.use_backend(backend):
        good = group_norm.ours(case, problem.tensors)
        problem.tensors["input"][1] = float("nan")
        bad = group_norm.ours(case, problem.tensors)
    assert bad[1].isnan().all()
    assert torch.equal(bad[0], good[0])
    assert torch.equal(bad[2], good[2])
