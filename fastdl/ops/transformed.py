"""The route of ``torch.func`` (see `fastdl.ops.operator`): a Function that its transforms can take apart."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fastdl.ops import dispatch
from fastdl.ops.annotation import FORWARD, announced

if TYPE_CHECKING:
    from fastdl.ops.operator import FusedOperator


def transformed_function(op: FusedOperator) -> type[torch.autograd.Function]:
    """The op's Function of ``(*tensors, *statics, backend)``: kernels forward, the reference for every derivative."""
    count, differentiable = op.count, op.differentiable

    class Transformed(torch.autograd.Function):
        @staticmethod
        def forward(*arguments: Any) -> tuple[Tensor, ...]:
            results = announced(op, FORWARD, dispatch.implementation(op.name, arguments[-1]))(*arguments[:-1])
            return tuple(arguments[0].new_empty(0) if result is None else result for result in results)

        @staticmethod
        def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
            ctx.outputs = 1 if op.adds_residual and inputs[1] is None else op.outputs
            ctx.mark_non_differentiable(*output[ctx.outputs :])
            ctx.save_for_backward(*inputs[:count])
            ctx.save_for_forward(*inputs[:count])
            ctx.statics = inputs[count:-1]

        @staticmethod
        def backward(ctx: Any, *grad_outputs: Any) -> Any:
            # Always the differentiable one: a transform may be nested in another, and torch.func has no create_graph.
            gradients = op.differentiate(
                grad_outputs[: ctx.outputs], ctx.saved_tensors, ctx.statics, ctx.needs_input_grad
            )
            return (*gradients, *[None] * (count - differentiable + len(ctx.statics) + 1))

        @staticmethod
        def jvp(ctx: Any, *tangents: Any) -> Any:
            tensors = ctx.saved_tensors
            wanted = [i for i in range(differentiable) if tangents[i] is not None]
            primals = tuple(tensors[i] for i in wanted)
            outputs = op.outputs_of(wanted, tensors, ctx.statics, ctx.outputs)
            directions = torch.func.jvp(outputs, primals, tuple(tangents[i] for i in wanted))[1]
            returned = 3 if op.adds_residual else 2
            return (*directions, *[None] * (returned - ctx.outputs))

        @staticmethod
        def vmap(info: Any, in_dims: tuple[int | None, ...], *arguments: Any) -> Any:
            statics = arguments[count:-1]

            def reference(*tensors: Any) -> tuple[Tensor, ...]:
                return op.reference(*tensors, *statics)

            batched = torch.vmap(reference, in_dims=in_dims[:count], randomness=info.randomness)
            return batched(*arguments[:count]), (0,) * (3 if op.adds_residual else 2)

    return Transformed
