"""The eager route: an ``autograd.Function`` straight onto a backend's kernels (see `fastdl.ops.operator`)."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fastdl.ops.dispatch import Implementation

if TYPE_CHECKING:
    from fastdl.ops.operator import FusedOperator

Observer = Callable[[Implementation | None, Tensor], None]
"""``observe(kernels, statistics)``: what computed the output, None for the reference or a traced op."""


def eager_apply(op: FusedOperator) -> Callable[..., Any]:
    """``apply(kernels, observe, statics, *tensors)`` of the op's Function, which keeps ``kernels`` for its backward."""
    function = _with_statistics(op) if op.differentiable_statistics else _with_one_output(op)
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
            output, statistics = kernels.forward(*tensors, *statics)
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
                gradients = ctx.kernels.backward(grad_output, *tensors, statistics, *ctx.statics, needs)
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
            output, statistics = kernels.forward(*tensors, *statics)
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
                gradients = ctx.kernels.backward(
                    grad_output, grad_statistics, *tensors, output, statistics, *ctx.statics, needs
                )
            return (None, None, None, *gradients, *rest)

    return Eager
