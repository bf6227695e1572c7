"""Dropout of a branch and the residual that it is added to, as transformers have it in training, and dropout alone.

Its answers are random, and each contender's are its own: they are held to what dropout is, not to one another.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

import fastdl

from .cases import DTYPES, Benchmark, Case, Function
from .correctness import copies, outputs_of
from .counting import Work
from .operands import Operands
from .row_norms import HALF, PLAIN, RESIDUAL, Shape, arrange, draw_residual, expand

P = 0.1
BOTH = (RESIDUAL, PLAIN)
# Ten rounds of two products, two shifts and four exclusive ors for eight values, the comparison, product and addition.
OPERATIONS = 13

SHAPES = (
    Shape((8, 197, 768), "ViT-B/16 at 224x224", BOTH, quick=True),
    Shape((16, 128, 768), "BERT-base", BOTH),
    Shape((4, 1024, 768), "GPT-2", BOTH),
    Shape((64, 65, 192), "ViT-Ti on CIFAR", BOTH, extra=True),
    Shape((8, 197, 3072), "hidden layer of ViT-B/16", (PLAIN,)),
    Shape((2, 16, 64), "a small call", BOTH, quick=True, dtypes=("float32",)),
)

GPU_SHAPES = (
    Shape((64, 197, 768), "ViT-B/16 at 224x224", BOTH, quick=True),
    Shape((64, 512, 1024), "BERT-large", BOTH, quick=True),
    Shape((64, 197, 3072), "hidden layer of ViT-B/16", (PLAIN,)),
    Shape((2, 16, 64), "a small call", quick=True),
)


def ours(case: Case) -> Function:
    def added(input: Tensor, residual: Tensor) -> Tensor:
        return fastdl.ops.dropout(input, P, residual=residual)

    def plain(input: Tensor) -> Tensor:
        return fastdl.ops.dropout(input, P)

    return added if case.variant == RESIDUAL else plain


def eager(case: Case) -> Function:
    def added(input: Tensor, residual: Tensor) -> Tensor:
        return F.dropout(input, P) + residual

    def plain(input: Tensor) -> Tensor:
        return F.dropout(input, P)

    return added if case.variant == RESIDUAL else plain


class Judge:
    """Holds a contender to what dropout is: as many are dropped as should be, the rest scaled, the gradient alike."""

    def __init__(self, benchmark: Benchmark, case: Case, operands: Operands) -> None:
        self.case = case
        self.operands = operands

    def complaint(self, function: Function, *, only_forward: bool = False) -> str | None:
        """What is wrong with the contender's answer, or None where nothing is."""
        input = self.operands.inputs[0].detach().requires_grad_()
        parameters = copies(self.operands.parameters)
        (output,) = outputs_of(function(input, *parameters))
        residual = parameters[0] if parameters else torch.zeros_like(input)
        eps = torch.finfo(DTYPES[self.case.dtype]).eps
        kept = input.detach().double() / (1 - P) + residual.detach().double()
        dropped = residual.detach().double()
        as_kept, as_dropped = (
            (output.detach().double() - expected).abs() <= 4 * eps * (1 + kept.abs()) + 1e-4
            for expected in (kept, dropped)
        )
        if not bool((as_kept | as_dropped).all()):
            return "wrong answer: a value is neither dropped nor kept and scaled"
        share = float((as_dropped & ~as_kept).double().mean())
        spread = math.sqrt(P * (1 - P) / output.numel())
        # A value near 0 may be either.
        unclear = float((as_dropped & as_kept).double().mean())
        if not P - 6 * spread - unclear <= share <= P + 6 * spread:
            return f"wrong answer: {share:.4f} of the values are dropped, expected {P}"
        if only_forward:
            return None
        grad = self.operands.grads[0]
        gradients = torch.autograd.grad(output, [input, *parameters], grad)
        expected = grad.double() * (~as_dropped).double() / (1 - P)
        wrong = (gradients[0].double() - expected).abs() > 4 * eps * (1 + grad.double().abs()) + 1e-4
        if bool((wrong & ~(as_dropped & as_kept)).any()):
            return "wrong answer: the gradient of the input does not fit what was dropped"
        if parameters and not torch.equal(gradients[1], grad):
            return "wrong answer: the gradient of the residual is not the output's"
        return None


def forward_work(case: Case) -> Work:
    """Read the input, and the residual if any, and write the output."""
    tensors = 3 if case.variant == RESIDUAL else 2
    return Work(tensors * case.tensor_bytes, vector_operations=OPERATIONS * case.elements)


def backward_work(case: Case) -> Work:
    """Read the output's gradient, which is the residual's too, and write the input's."""
    return Work(2 * case.tensor_bytes, vector_operations=OPERATIONS * case.elements)


BENCHMARK = Benchmark(
    name="dropout",
    title="dropout, alone and added to a residual",
    cases=expand(SHAPES),
    parameters=draw_residual,
    ours=ours,
    eager=eager,
    truth=eager,
    peers=(),
    forward_work=forward_work,
    backward_work=backward_work,
    overhead_size=(2, 16, 64),
    gpu_cases=expand(GPU_SHAPES, tuple(reversed(HALF))),
    arrange=arrange,
    judge=Judge,
)
