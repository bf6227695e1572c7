"""A contender is timed only if it gives the right answer: output, gradients and changed buffers, against float64."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .cases import Benchmark, Case, Function
from .operands import Operands

# The test suite judges precision. Here only what computes something else, or overflows, must not be timed.
TIMES_EAGER = 4.0
UNITS_IN_THE_LAST_PLACE = 8.0
# Of the scale. One of a channel's thousands of pre-activations may round to the other side of ReLU's kink, in torch as
# in ours, and takes its whole addend out of the parameters' gradients: measured, 5e-5 at 3,136 values a channel.
A_VALUE_AT_THE_KINK = 1e-4
OUTPUT = "output"


def outcomes(function: Function, operands: Operands, dtype: torch.dtype | None = None) -> dict[str, Tensor]:
    """Output, gradients and buffers after forward and backward on copies of the first set, in ``dtype`` if given."""
    input = operands.inputs[0].detach()
    grad = operands.grads[0]
    if dtype is not None:
        input, grad = input.to(dtype), grad.to(dtype)
    input = input.requires_grad_()
    parameters = copies(operands.parameters, dtype)
    results = outputs_of(function(input, *parameters))
    leaves = [parameter for parameter in parameters if parameter.requires_grad]
    gradients = torch.autograd.grad(results, [input, *leaves], [grad] * len(results))
    named = _numbered(results) | {"gradient of the input": gradients[0]}
    named |= {f"gradient of parameter {i}": gradient for i, gradient in enumerate(gradients[1:])}
    named |= {f"buffer {i}": p for i, p in enumerate(parameters) if not p.requires_grad and p.is_floating_point()}
    return named


def outputs(function: Function, operands: Operands) -> dict[str, Tensor]:
    """The outputs alone, of a call that no gradient is asked of."""
    with torch.no_grad():
        return _numbered(outputs_of(function(operands.inputs[0].detach(), *copies(operands.parameters))))


def _numbered(results: tuple[Tensor, ...]) -> dict[str, Tensor]:
    return {f"{OUTPUT} {i}" if i else OUTPUT: result.detach() for i, result in enumerate(results)}


def outputs_of(result: Any) -> tuple[Tensor, ...]:
    """The outputs of a function that may have one or several, each of the input's shape."""
    return result if isinstance(result, tuple) else (result,)


def copies(parameters: Sequence[Tensor], dtype: torch.dtype | None = None) -> list[Tensor]:
    """Leaves of the same values, so that a call that changes its buffers leaves the originals as they are."""
    return [
        p.detach().to(dtype if dtype and p.is_floating_point() else p.dtype, copy=True).requires_grad_(p.requires_grad)
        for p in parameters
    ]


class Judge:
    """Compares the contenders of one case with its definition in float64, by the error that eager torch has there."""

    def __init__(self, benchmark: Benchmark, case: Case, operands: Operands) -> None:
        self.operands = operands
        self.truth = outcomes(benchmark.truth(case), operands, torch.float64)
        self.eager_errors = errors(outcomes(benchmark.eager(case), operands), self.truth)

    def complaint(self, function: Function, *, only_forward: bool = False) -> str | None:
        """What is wrong with the contender's answer, or None where nothing is; ``only_forward``: in its outputs."""
        found = outputs(function, self.operands) if only_forward else outcomes(function, self.operands)
        truth = {name: value for name, value in self.truth.items() if not only_forward or name.startswith(OUTPUT)}
        for name, error in errors(found, truth).items():
            scale = float(self.truth[name].abs().max())
            allowed = (
                TIMES_EAGER * self.eager_errors[name]
                + UNITS_IN_THE_LAST_PLACE * torch.finfo(found[name].dtype).eps * scale
                + A_VALUE_AT_THE_KINK * scale
            )
            if not error <= allowed:  # a NaN is not
                return f"wrong answer: the {name} is off by {error:.2e}, at most {allowed:.2e} is allowed"
        return None


def errors(found: dict[str, Tensor], truth: dict[str, Tensor]) -> dict[str, float]:
    """The largest absolute error of each tensor; infinite where a shape differs."""
    return {
        name: float((found[name].double() - expected).abs().max())
        if found[name].shape == expected.shape
        else float("inf")
        for name, expected in truth.items()
    }
