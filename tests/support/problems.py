"""A case is a row of a table, a problem is its tensors; both are the same for every implementation."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import pytest
import torch
from torch import Generator, Tensor

import fastdl
from fastdl.reference import activate
from tests.support.accuracy import assert_as_right_as_torch, largest, relative_error
from tests.support.backends import BACKENDS_UNDER_TEST, FLOATING, short
from tests.support.layouts import LAYOUTS
from tests.support.values import VALUES

Tensors = dict[str, Tensor]

# Where the derivative of an activation jumps. A pre-activation that lies closer to one of these than its rounding error
# may fall on either side of it, in torch as in ours, so a problem keeps clear of them.
KINKS = {"relu": (0.0,), "leaky_relu": (0.0,), "elu": (0.0,), "hardswish": (-3.0, 3.0)}


@dataclass(frozen=True)
class Case:
    """What every op's cases have in common; each row of a table is one.

    Attributes:
        name: the test's id.
        shape: of the input.
        layout, values: of the input, by their names in ``LAYOUTS`` and ``VALUES``.
        grad_layout, grad_values: of the gradient that backward is given.
        weight, bias: whether the norm has them.
        parameter_dtype: of weight and bias; None is the input's.
        residual: its layout, or None for none.
        dtypes: of the input.
        bounded: whether the gradients, too, must keep to ``accuracy.SANE``, as the output always must.
        floor: the least scale of the input's gradient, where its terms cancel to 0 but for their rounding.
        margin: the distance that is kept from an activation's kinks.
        slow: takes more than about ten seconds.
    """

    name: str
    shape: tuple[int, ...]
    layout: str = "contiguous"
    values: str = "varied"
    grad_layout: str = "contiguous"
    grad_values: str = "normal"
    weight: bool = True
    bias: bool = True
    parameter_dtype: torch.dtype | None = None
    eps: float = 1e-5
    activation: str = "silu"
    activation_param: float | None = None
    order: str = "norm_act"
    residual: str | None = None
    dtypes: tuple[torch.dtype, ...] = FLOATING
    bounded: bool = False
    floor: float = 0.0
    margin: float = 4e-6
    slow: bool = False


@dataclass(frozen=True)
class Operator:
    """An op as the tests see it; joining the suite is one row in ``tests.support.operators``.

    Attributes:
        name: as on every floor of the package.
        cases: the rows of its parity test.
        parameters: the tensors beside ``input``, from a case, a function from a shape to values, and the input's dtype.
        ours, reference, torch: the op, its definition, and torch's composition, each a function of a case and tensors.
        without_activation: the case with its last activation removed: what the activation is applied to.
        differentiable: the tensors with a gradient, in the order of the op's arguments.
        updated: the tensors that the op changes in place.
        sums: results that add up a value of each row, beside all of one dimension.
        cancelling: gradients that may be 0 but for rounding, each with the one whose scale is that of what cancels.
    """

    name: str
    cases: tuple[Case, ...]
    parameters: Callable[[Any, Callable[..., Tensor], torch.dtype], Tensors]
    ours: Callable[[Any, Tensors], Tensor]
    reference: Callable[[Any, Tensors], Tensor]
    torch: Callable[[Any, Tensors], Tensor]
    without_activation: Callable[[Any], Any | None]
    differentiable: tuple[str, ...]
    updated: tuple[str, ...] = ()
    sums: tuple[str, ...] = ()
    cancelling: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Problem:
    """The tensors of one case in one dtype, and the gradient for its backward."""

    tensors: Tensors
    grad_output: Tensor


def make_problem(
    operator: Operator, case: Case, dtype: torch.dtype, device: torch.device | str = "cpu", draw: int = 0
) -> Problem:
    """Random tensors for a case, the same ones every time for each ``draw``, with no pre-activation at a kink."""
    seed = zlib.crc32(f"{operator.name} {case.name} {dtype} {draw}".encode())
    for attempt in range(1000):
        problem = draw_problem(operator, case, dtype, torch.device(device), seed + attempt)
        if keeps_clear_of_kinks(operator, case, problem):
            return problem
    raise AssertionError(
        f"{case.name}: 1000 draws all have a pre-activation at a kink of {case.activation}; lower margin"
    )


def draw_problem(operator: Operator, case: Case, dtype: torch.dtype, device: torch.device, seed: int) -> Problem:
    generator = Generator().manual_seed(seed)

    def fill(shape: tuple[int, ...], kind: str = "normal", to: torch.dtype = dtype) -> Tensor:
        return VALUES[kind](shape, generator).to(to).to(device)

    tensors = {"input": LAYOUTS[case.layout](case.shape, lambda shape: fill(shape, case.values))}
    tensors |= operator.parameters(case, fill, dtype)
    with torch.no_grad():
        shape = tuple(operator.torch(case, meta_copies(tensors)).shape)
    if case.residual is not None:
        tensors["residual"] = LAYOUTS[case.residual](shape, fill)
    grad_output = LAYOUTS[case.grad_layout](shape, lambda shape: fill(shape, case.grad_values))
    return Problem(tensors, grad_output)


def meta_copies(tensors: Tensors) -> Tensors:
    return {name: torch.empty_like(tensor, device="meta") for name, tensor in tensors.items()}


def keeps_clear_of_kinks(operator: Operator, case: Case, problem: Problem) -> bool:
    plain = operator.without_activation(case)
    kinks = KINKS.get(case.activation, ())
    if not kinks or plain is None:
        return True
    with torch.no_grad():
        u = operator.reference(plain, doubles(problem.tensors))
    return all(bool(((u - kink).abs() > case.margin).all()) for kink in kinks)


def doubles(tensors: Tensors) -> Tensors:
    return {name: tensor.detach().to(torch.float64, copy=True) for name, tensor in tensors.items()}


def solve(
    operator: Operator,
    function: Callable[[Any, Tensors], Tensor],
    case: Case,
    problem: Problem,
    *,
    double: bool = False,
) -> Tensors:
    """Output, gradients and updated tensors of one implementation; in float64 with ``double``."""
    tensors = doubles(problem.tensors) if double else dict(problem.tensors)
    for name in operator.updated:
        if name in tensors:
            tensors[name] = tensors[name].clone()
    names = [name for name in operator.differentiable if name in tensors]
    for name in names:
        tensors[name] = tensors[name].detach().requires_grad_()
    output = function(case, tensors)
    gradients = torch.autograd.grad(output, [tensors[name] for name in names], problem.grad_output.to(output.dtype))
    results = {"output": output.detach()}
    results |= {f"gradient of {name}": gradient for name, gradient in zip(names, gradients, strict=True)}
    results |= {name: tensors[name] for name in operator.updated if name in tensors}
    return results


def problem_rows(operator: Operator) -> list[Any]:
    """One pytest parameter for each case, dtype and backend, with the backends of a case next to each other."""
    return [
        pytest.param(
            case, dtype, backend, id=f"{case.name}-{short(dtype)}-{backend}", marks=[pytest.mark.slow] * case.slow
        )
        for case in operator.cases
        for dtype in case.dtypes
        for backend in BACKENDS_UNDER_TEST
        if dtype in BACKENDS_UNDER_TEST[backend].dtypes()
    ]


def draws_of(case: Case) -> int:
    """How often a problem is drawn to see how far torch's own error goes: with few numbers that is a matter of luck."""
    values = torch.Size(case.shape).numel()
    return 12 if values <= 1 << 15 else 4 if values <= 1 << 17 else 1


@dataclass(frozen=True)
class Expected:
    """A problem, its truth, what torch makes of it, and torch's relative errors in further draws, by name."""

    problem: Problem
    truth: Tensors
    baseline: Tensors
    typical: dict[str, float]


@lru_cache(maxsize=2)
def expected_of(operator_name: str, case: Case, dtype: torch.dtype, device: torch.device) -> Expected:
    """The same for every backend, so kept for the next one."""
    from tests.support.operators import OPERATORS

    operator = OPERATORS[operator_name]
    problems = [make_problem(operator, case, dtype, device, draw) for draw in range(draws_of(case))]
    truths = [solve(operator, operator.reference, case, problem, double=True) for problem in problems]
    baselines = [solve(operator, operator.torch, case, problem) for problem in problems]
    scale_of = dict(operator.cancelling)
    typical = {
        name: max(
            relative_error(baseline[name], truth[name], truth[scale_of.get(name, name)])
            for baseline, truth in zip(baselines, truths, strict=True)
        )
        for name in truths[0]
    }
    return Expected(problems[0], truths[0], baselines[0], typical)


def check_parity(operator: Operator, case: Case, dtype: torch.dtype, backend: str) -> None:
    """The parity test of one row: output, gradients and updated tensors by the rule of ``tests.support.accuracy``."""
    device = BACKENDS_UNDER_TEST[backend].device()
    expected = expected_of(operator.name, case, dtype, device)
    with fastdl.use_backend(backend):
        ours = solve(operator, operator.ours, case, expected.problem)
    assert_solution(operator, case, ours, expected, backend)


# On the CPU torch sums the gradients of weight and bias in float64. The reference leaves that to autograd, which
# does it in float32 as torch does everywhere else, so its sums may be off by more.
SUMS_OF_THE_REFERENCE = 3.0

# A gradient of weight or bias adds up thousands of values, each rounded before: measured, up to a tenth of a unit
# over the rule at 2052 values a channel, and compiled for AVX2 a hundredth over two units at 1026, where torch, with
# AVX-512, happened to be nearer to the truth.
UNITS_OF_A_SUM = 2.25


def assert_solution(operator: Operator, case: Case, ours: Tensors, expected: Expected, backend: str = "auto") -> None:
    """Every result against the truth, with torch's composition as the yardstick."""
    assert ours.keys() == expected.truth.keys() == expected.baseline.keys()
    # torch's group_norm gives NaN as the weight's gradient where there are no positions; its batch_norm gives the 0 of
    # an empty sum, as the definition does.
    empty = not expected.problem.tensors["input"].numel()
    cancelling = dict(operator.cancelling)
    for name, result in ours.items():
        truth, typical, floor = expected.truth[name], expected.typical[name], 0.0
        if name in cancelling:
            floor = largest(expected.truth[cancelling[name]])
        elif name == "gradient of input" and case.floor:
            typical, floor = 0.0, case.floor
        is_sum = name in operator.sums or result.ndim == 1
        assert_as_right_as_torch(
            f"{operator.name} {case.name}: {name}",
            result,
            truth,
            truth.to(result.dtype) if empty else expected.baseline[name],
            typical=typical,
            bounded=case.bounded or name == "output",
            floor=floor,
            factor=SUMS_OF_THE_REFERENCE if backend == "reference" and is_sum else 1.5,
            units=UNITS_OF_A_SUM if is_sum else 1.0,
        )


def apply_activation(case: Case, u: Tensor) -> Tensor:
    """torch's own activation, in the dtype of ``u``."""
    return activate(u, case.activation, case.activation_param)


def compose(case: Case, normalize: Callable[[Tensor], Tensor], input: Tensor, residual: Tensor | None) -> Tensor:
    """torch's composition around a norm, in either order, each step rounded to the dtype as torch does it."""
    if case.order.endswith("act_norm"):
        x = apply_activation(case, input)
        return normalize(x if residual is None else x + residual)
    y = normalize(input)
    return apply_activation(case, y if residual is None else y + residual)
