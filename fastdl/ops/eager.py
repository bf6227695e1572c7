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


def eager_apply(op: FusedOperator) -> Callable[..., Tensor]:
    """``apply(kernels, observe, statics, *tensors)`` of the op's Function, which keeps ``kernels`` for its backward."""
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
                gradients = op.differentiate(grad_output, tensors, ctx.statics, needs)
            else:
                gradients = ctx.kernels.backward(grad_output, *tensors, statistics, *ctx.statics, needs)
            return (None, None, None, *gradients, *rest)

    Eager.__name__ = Eager.__qualname__ = "".join(word.title() for word in op.name.split("_"))
    # The C++ apply beneath Function.apply, whose Python part (2 us) only serves torch.func, which takes another route.
    apply: Callable[..., Tensor] = super(torch.autograd.Function, Eager).apply
    return apply
