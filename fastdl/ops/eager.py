"""The eager route: an ``autograd.Function`` straight onto a backend's kernels (see `fastdl.ops.operator`)."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fastdl.ops import annotation
from fastdl.ops.annotation import BACKWARD, FORWARD, announced
from fastdl.ops.dispatch import Implementation

if TYPE_CHECKING:
    from fastdl.ops.operator import FusedOperator

Observer = Callable[[Implementation | None, Tensor], None]
"""``observe(kernels, statistics)``: what computed the output, None for the reference or a traced op."""


def eager_apply(op: FusedOperator) -> Callable[..., Any]:
    """``apply(kernels, observe, statics, *tensors)`` of the op's Function, which keeps ``kernels`` for its backward."""
    make = _with_statistics if op.differentiable_statistics else _with_sum if op.adds_residual else _with_one_output
    function = make(op)
    function.__name__ = function.__qualname__ = "".join(word.title() for word in op.name.split("_"))
    # The C++ apply beneath Function.apply, whose Python part (2 us) only serves torch.func, which takes another route.
    apply: Callable[..., Any] = super(torch.autograd.Function, function).apply  # type: ignore[misc]
    return apply


def _with_one_output(op: FusedOperator) -> type[torch.autograd.Function]:
    differentiable = op.differentiable
    rest = (None,) * (op.count - differentiable)

    class Eager(torch.autograd.Function):
        @staticmethod
        def forward(
            ctx: Any, kernels: Implementation, observe: Observer | None, statics: tuple[Any, ...], *tensors: Any
        ) -> Tensor:
            forward = kernels.forward if annotation.annotate is None else announced(op, FORWARD, kernels)
            output, statistics = forward(*tensors, *statics)
            if observe is not None:
                observe(kernels, statistics)
            ctx.save_for_backward(statistics, *tensors)
            ctx.kernels = kernels
            ctx.statics = statics
            return output

        @staticmethod
        def backward(ctx: Any, grad_output: Tensor) -> Any:
            statistics, *tensors = ctx.saved_tensors
            needs = ctx.needs_input_grad[3 : differentiable + 3]
            if torch.is_grad_enabled():
                gradients = op.differentiate((grad_output,), tensors, ctx.statics, needs)
            else:
                kernels = ctx.kernels
                backward = kernels.backward if annotation.annotate is None else announced(op, BACKWARD, kernels)
                gradients = backward(grad_output, *tensors, statistics, *ctx.statics, needs)
            return (None, None, None, *gradients, *rest)

    return Eager


def _with_statistics(op: FusedOperator) -> type[torch.autograd.Function]:
    """The same for an op whose statistics have a gradient; it keeps its output as well, which costs nothing further."""
    differentiable = op.differentiable
    rest = (None,) * (op.count - differentiable)

    class Eager(torch.autograd.Function):
        @staticmethod
        def forward(
            ctx: Any, kernels: Implementation, observe: Observer | None, statics: tuple[Any, ...], *tensors: Any
        ) -> tuple[Tensor, Tensor]:
            forward = kernels.forward if annotation.annotate is None else announced(op, FORWARD, kernels)
            output, statistics = forward(*tensors, *statics)
            if observe is not None:
                observe(kernels, statistics)
            ctx.save_for_backward(output, statistics, *tensors)
            ctx.set_materialize_grads(False)
            ctx.kernels = kernels
            ctx.statics = statics
            return output, statistics

        @staticmethod
        def backward(ctx: Any, grad_output: Tensor | None, grad_statistics: Tensor | None) -> Any:
            output, statistics, *tensors = ctx.saved_tensors
            needs = ctx.needs_input_grad[3 : differentiable + 3]
            if grad_output is None and grad_statistics is None:
                return (None,) * (3 + op.count)
            if torch.is_grad_enabled():
                gradients = op.differentiate((grad_output, grad_statistics), tensors, ctx.statics, needs)
            else:
                if grad_output is None:
                    grad_output = torch.zeros_like(output)
                kernels = ctx.kernels
                backward = kernels.backward if annotation.annotate is None else announced(op, BACKWARD, kernels)
                gradients = backward(grad_output, grad_statistics, *tensors, output, statistics, *ctx.statics, needs)
            return (None, None, None, *gradients, *rest)

    return Eager


def _with_sum(op: FusedOperator) -> type[torch.autograd.Function]:
    """The same for an op that may add a residual: it then returns the sum as well, and keeps only that of the two."""
    differentiable = op.differentiable
    rest = (None,) * (op.count - differentiable)

    class Eager(torch.autograd.Function):
        @staticmethod
        def forward(
            ctx: Any, kernels: Implementation, observe: Observer | None, statics: tuple[Any, ...], *tensors: Any
        ) -> Any:
            forward = kernels.forward if annotation.annotate is None else announced(op, FORWARD, kernels)
            output, sum, statistics = forward(*tensors, *statics)
            if observe is not None:
                observe(kernels, statistics)
            ctx.save_for_backward(statistics, *op.kept(tensors, sum))
            ctx.kernels = kernels
            ctx.statics = statics
            if sum is None:
                return output
            ctx.set_materialize_grads(False)
            return output, sum

        @staticmethod
        def backward(ctx: Any, *grad_outputs: Tensor | None) -> Any:
            grad_output, grad_sum = grad_outputs if len(grad_outputs) == 2 else (grad_outputs[0], None)
            if grad_output is None:  # the parameters have no part in the sum
                return (None, None, None, grad_sum, grad_sum, *[None] * (op.count - 2))
            statistics, *tensors = ctx.saved_tensors
            of_input, of_residual, *others = ctx.needs_input_grad[3 : differentiable + 3]
            needs = [of_input or of_residual, False, *others]
            if torch.is_grad_enabled():
                gradients = op.differentiate(grad_outputs, tensors, ctx.statics, needs)
            else:
                kernels = ctx.kernels
                backward = kernels.backward if annotation.annotate is None else announced(op, BACKWARD, kernels)
                gradients = backward(grad_output, grad_sum, *tensors, statistics, *ctx.statics, needs)
            return (None, None, None, gradients[0], gradients[0] if of_residual else None, *gradients[2:], *rest)

    return Eager
