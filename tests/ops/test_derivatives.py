"""First and second derivatives: against finite differences, and against torch's composition differentiated twice."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

import fastdl
from tests.support import batch_norm, conv_norm_act, group_norm
from tests.support.accuracy import assert_as_right_as_torch
from tests.support.backends import BACKENDS_UNDER_TEST
from tests.support.problems import Case, Operator, Problem, Tensors, doubles, make_problem

SHAPE = (2, 4, 2, 3)
DOUBLE = [name for name, backend in BACKENDS_UNDER_TEST.items() if torch.float64 in backend.dtypes()]

# Kinked activations are checked too: a margin keeps the finite difference on one side.
KEEP_CLEAR = 1e-3


def rows() -> list[Any]:
    cases: list[tuple[Operator, Case]] = []
    for activation in (
        "identity",
        "relu",
        "sigmoid",
        "tanh",
        "silu",
        "gelu",
        "gelu_tanh",
        "elu",
        "hardswish",
        "mish",
        "softplus",
    ):
        options: dict[str, Any] = {"activation": activation, "margin": KEEP_CLEAR}
        cases.append((group_norm.OPERATOR, group_norm.row(f"check_{activation}", SHAPE, 2, **options)))
        cases.append((batch_norm.OPERATOR, batch_norm.row(f"check_{activation}", SHAPE, **options)))
    for order in ("norm_act", "act_norm"):
        for residual in (None, "contiguous"):
            for layout in ("contiguous", "channels_last"):
                options = {
                    "order": order,
                    "residual": residual,
                    "layout": layout,
                    "grad_layout": layout,
                    "activation": "silu",
                }
                name = f"check_{order}_{'residual' if residual else 'alone'}_{layout}"
                cases.append((group_norm.OPERATOR, group_norm.row(name, SHAPE, 2, **options)))
                for training in (True, False):
                    options["training"] = training
                    name_by_mode = f"{name}_{'training' if training else 'evaluation'}"
                    cases.append((batch_norm.OPERATOR, batch_norm.row(name_by_mode, SHAPE, **options)))
                del options["training"]
    cases += [
        (group_norm.OPERATOR, group_norm.row("check_no_parameters", SHAPE, 2, weight=False, bias=False)),
        (group_norm.OPERATOR, group_norm.row("check_no_bias", SHAPE, 4, bias=False)),
        (group_norm.OPERATOR, group_norm.row("check_no_weight", (3, 6), 2, weight=False)),
        (
            batch_norm.OPERATOR,
            batch_norm.row("check_no_parameters", SHAPE, weight=False, bias=False, activation="tanh"),
        ),
        (batch_norm.OPERATOR, batch_norm.row("check_two_dimensions", (5, 3), activation="tanh")),
        (conv_norm_act.OPERATOR, conv_norm_act.row("check_batch", (2, 2, 4, 4), kernel=(4, 2, 3, 3))),
        (
            conv_norm_act.OPERATOR,
            conv_norm_act.row(
                "check_group", (2, 2, 4, 4), kernel=(4, 2, 3, 3), norm="group", num_groups=2, order="conv_act_norm"
            ),
        ),
    ]
    return [
        pytest.param(operator, case, backend, id=f"{operator.name}-{case.name}-{backend}")
        for operator, case in cases
        for backend in DOUBLE
    ]


def function_of_inputs(
    operator: Operator, case: Case, problem: Problem
) -> tuple[Callable[..., Tensor], tuple[Tensor, ...]]:
    names = [name for name in operator.differentiable if name in problem.tensors]
    primals = tuple(problem.tensors[name].detach().requires_grad_() for name in names)

    def function(*arguments: Tensor) -> Tensor:
        tensors = problem.tensors | dict(zip(names, arguments, strict=True))
        for name in operator.updated:  # each evaluation starts from the same running statistics
            if name in tensors:
                tensors[name] = tensors[name].clone()
        return operator.ours(case, tensors)

    return function, primals


@pytest.mark.parametrize(("operator", "case", "backend"), rows())
def test_first_derivatives_are_those_of_finite_differences(operator: Operator, case: Case, backend: str) -> None:
    device = BACKENDS_UNDER_TEST[backend].device()
    function, primals = function_of_inputs(operator, case, make_problem(operator, case, torch.float64, device))
    with fastdl.use_backend(backend):
        assert gradcheck(function, primals)


@pytest.mark.parametrize(("operator", "case", "backend"), rows())
def test_second_derivatives_are_those_of_finite_differences(operator: Operator, case: Case, backend: str) -> None:
    device = BACKENDS_UNDER_TEST[backend].device()
    function, primals = function_of_inputs(operator, case, make_problem(operator, case, torch.float64, device))
    with fastdl.use_backend(backend):
        assert gradgradcheck(
            function, primals, fast_mode=True, gen_non_contig_grad_outputs="channels_last" in case.name
        )


def gradient_penalty(
    apply: Callable[[Any, Tensors], Tensor], case: Case, operator: Operator, tensors: Tensors
) -> dict[str, Tensor]:
    """(|d f / d x| - 1)^2, and its gradient by every tensor: what WGAN-GP adds to a loss (arXiv:1704.00028, eq. 3)."""
    tensors = {
        name: tensor.detach().clone().requires_grad_() if name in operator.differentiable else tensor.clone()
        for name, tensor in tensors.items()
    }
    score = apply(case, tensors).square().sum()
    (gradient,) = torch.autograd.grad(score, tensors["input"], create_graph=True)
    penalty = (gradient.flatten(1).norm(dim=1) - 1).square().mean()
    names = [name for name in operator.differentiable if name in tensors]
    by_tensor = torch.autograd.grad(penalty, [tensors[name] for name in names], allow_unused=True)
    assert any(gradient is not None for gradient in by_tensor)
    return {"penalty": penalty.detach()} | {n: g for n, g in zip(names, by_tensor, strict=True) if g is not None}


@pytest.mark.parametrize("backend", BACKENDS_UNDER_TEST)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize(
    ("operator", "options"),
    [
        (group_norm.OPERATOR, {"num_groups": 3, "activation": "silu"}),
        (group_norm.OPERATOR, {"num_groups": 6, "activation": "leaky_relu", "activation_param": 0.2}),
        (batch_norm.OPERATOR, {"activation": "gelu"}),
        (batch_norm.OPERATOR, {"activation": "tanh", "training": False}),
        (batch_norm.OPERATOR, {"activation": "silu", "order": "act_norm", "residual": "contiguous"}),
    ],
    ids=["group_norm-silu", "group_norm-leaky_relu", "batch_norm-gelu", "batch_norm-evaluation", "batch_norm-act_norm"],
)
def test_a_gradient_penalty_has_torchs_gradients(
    operator: Operator, options: dict[str, Any], layout: str, backend: str
) -> None:
    device = BACKENDS_UNDER_TEST[backend].device()
    options = dict(options)
    groups = [options.pop("num_groups")] if "num_groups" in options else []
    make = group_norm.row if groups else batch_norm.row
    case = make("penalty", (3, 6, 4, 5), *groups, layout=layout, **options)
    problem = make_problem(operator, case, torch.float32, device)
    truth = gradient_penalty(operator.torch, case, operator, doubles(problem.tensors))
    baseline = gradient_penalty(operator.torch, case, operator, problem.tensors)
    with fastdl.use_backend(backend):
        ours = gradient_penalty(operator.ours, case, operator, problem.tensors)
    assert ours.keys() == baseline.keys()
    typical = max(float((baseline[n] - truth[n]).abs().max() / truth[n].abs().max()) for n in truth)
    for name, result in ours.items():
        assert_as_right_as_torch(f"{operator.name}: {name}", result, truth[name], baseline[name], typical=typical)


@pytest.mark.parametrize("backend", DOUBLE)
def test_only_what_needs_a_gradient_gets_one(backend: str) -> None:
    device = BACKENDS_UNDER_TEST[backend].device()
    problem = make_problem(group_norm.OPERATOR, group_norm.row("needs", SHAPE, 2), torch.float64, device)
    expected: dict[tuple[str, ...], Tensors] = {}
    names = ("input", "weight", "bias")
    for wanted in (names, ("input",), ("weight",), ("bias",), ("input", "bias"), ("weight", "bias")):
        tensors = {n: t.detach().clone().requires_grad_(n in wanted) for n, t in problem.tensors.items()}
        with fastdl.use_backend(backend):
            output = group_norm.ours(group_norm.row("needs", SHAPE, 2), tensors)
        output.backward(problem.grad_output)
        assert {n for n in names if tensors[n].grad is not None} == set(wanted)
        expected[wanted] = {n: tensors[n].grad for n in wanted}  # type: ignore[misc]
    for wanted, gradients in expected.items():
        for name in wanted:
            assert torch.equal(gradients[name], expected[names][name])


@pytest.mark.parametrize("backend", DOUBLE)
def test_backward_twice_needs_and_takes_retain_graph(backend: str) -> None:
    device = BACKENDS_UNDER_TEST[backend].device()
    x = torch.randn(SHAPE, dtype=torch.float64, device=device, requires_grad=True)
    with fastdl.use_backend(backend):
        output = fastdl.ops.group_norm(x, 2, activation="silu").sum()
    (first,) = torch.autograd.grad(output, x, retain_graph=True)
    (second,) = torch.autograd.grad(output, x)
    assert torch.equal(first, second)
    with pytest.raises(RuntimeError, match="second time"):
        torch.autograd.grad(output, x)


@pytest.mark.parametrize("backend", DOUBLE)
@pytest.mark.parametrize("name", ["input", "weight", "bias", "residual"])
def test_changing_a_tensor_in_place_never_gives_wrong_gradients(name: str, backend: str) -> None:
    """Between forward and backward: either it was not needed any more, or autograd refuses."""
    device = BACKENDS_UNDER_TEST[backend].device()
    values = {
        "input": torch.randn(SHAPE),
        "weight": torch.randn(4),
        "bias": torch.randn(4),
        "residual": torch.randn(SHAPE),
    }
    leaves = {n: value.to(device).requires_grad_() for n, value in values.items()}

    def gradients(change: bool) -> tuple[Tensor, ...]:
        t = {n: leaf * 1 for n, leaf in leaves.items()}
        with fastdl.use_backend(backend):
            output = fastdl.ops.batch_norm(
                t["input"], None, None, t["weight"], t["bias"], True, activation="silu", residual=t["residual"]
            )
        if change:
            t[name].add_(1)
        return torch.autograd.grad(output.square().sum(), list(leaves.values()))

    expected = gradients(False)
    refused = pytest.raises(RuntimeError, match="inplace")
    needed = backend != "reference" or name == "weight"  # a kernel saves all four, the reference the weight alone
    with refused if needed else contextlib.nullcontext():
        assert all(torch.equal(a, b) for a, b in zip(gradients(True), expected, strict=True))
