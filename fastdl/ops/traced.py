"""The traced route (see `fastdl.ops.operator`): the ops ``fastdl::<name>_forward`` and ``fastdl::<name>_backward``.

Both take the backend's name as it was asked for, ``auto`` included, so that an exported program chooses where it runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fastdl.ops import dispatch
from fastdl.ops.layout import output_like

if TYPE_CHECKING:
    from fastdl.ops.operator import FusedOperator


def register_ops(op: FusedOperator, tensors: str, statics: str) -> tuple[Any, Any]:
    """Defines the two ops, with their fake implementations and their autograd; returns their overloads."""
    outputs = ", ".join(["Tensor"] * op.differentiable)
    forward = torch.library.custom_op(
        f"fastdl::{op.name}_forward",
        partial(_run_forward, op),
        mutates_args=(),
        schema=f"({tensors}, {statics}, str backend) -> (Tensor, Tensor)",
    )
    backward = torch.library.custom_op(
        f"fastdl::{op.name}_backward",
        partial(_run_backward, op),
        mutates_args=(),
        schema=f"(Tensor grad_output, {tensors}, Tensor statistics, {statics}, bool[] needs, str backend)"
        f" -> ({outputs})",
    )
    forward.register_fake(partial(_fake_forward, op))
    backward.register_fake(partial(_fake_backward, op))
    forward.register_autograd(partial(_backward, op), setup_context=partial(_save_for_backward, op))
    backward.register_autograd(partial(_double_backward, op), setup_context=partial(_save_for_double_backward, op))
    namespace = torch.ops.fastdl
    return getattr(namespace, f"{op.name}_forward").default, getattr(namespace, f"{op.name}_backward").default


# -- what the ops do --------------------------------------------------------------------------------------------------


def _run_forward(op: FusedOperator, *arguments: Any) -> tuple[Tensor, Tensor]:
    inner, request = arguments[:-1], arguments[-1]
    input = inner[0]
    backend = dispatch.choose(op.name, request, input.device.type, input.dtype)
    if backend == "reference":
        output, statistics = op.reference(*inner)
        return output_like(input).copy_(output), statistics
    output, statistics = dispatch.implementation(op.name, backend).forward(*inner)
    return output, statistics


def _run_backward(op: FusedOperator, grad_output: Tensor, *arguments: Any) -> tuple[Tensor, ...]:
    *inner, needs, request = arguments
    tensors, statistics, statics = inner[: op.count], inner[op.count], tuple(inner[op.count + 1 :])
    input = tensors[0]
    backend = dispatch.choose(op.name, request, input.device.type, input.dtype)
    if backend == "reference":
        # In a thread of its own: the dispatcher's state in this one lies below autograd, which would record nothing.
        with ThreadPoolExecutor(1) as executor:
            gradients = executor.submit(_reference_backward, op, grad_output, tensors, statics, needs).result()
    else:
        kernels = dispatch.implementation(op.name, backend)
        gradients = kernels.backward(grad_output, *tensors, statistics, *statics, needs)
    return tuple(
        _in_promised_layout(tensor, input, gradient)
        for tensor, gradient in zip(tensors[: op.differentiable], gradients, strict=True)
    )


def _reference_backward(
    op: FusedOperator, grad_output: Tensor, tensors: list[Any], statics: tuple[Any, ...], needs: Sequence[bool]
) -> list[Tensor | None]:
    wanted = [i for i in range(op.differentiable) if needs[i] and tensors[i] is not None]
    primals = [tensors[i].detach().requires_grad_() for i in wanted]
    output = op.output_of(wanted, tensors, statics)(*primals)
    gradients: list[Tensor | None] = [None] * op.differentiable
    for position, gradient in zip(wanted, torch.autograd.grad(output, primals, grad_output), strict=True):
        gradients[position] = gradient
    return gradients


def _in_promised_layout(tensor: Tensor | None, input: Tensor, gradient: Tensor | None) -> Tensor:
    """A gradient in the layout that the fake implementation promises; an empty tensor stands for "not asked for"."""
    if gradient is None or tensor is None:
        return input.new_empty(0)
    promised = output_like(input if tensor.ndim == input.ndim else tensor)
    return gradient if promised.stride() == gradient.stride() else promised.copy_(gradient)


def _fake_forward(op: FusedOperator, *arguments: Any) -> tuple[Tensor, Tensor]:
    return output_like(arguments[0]), op.empty_statistics(*arguments[:-1])


def _fake_backward(op: FusedOperator, grad_output: Tensor, *arguments: Any) -> tuple[Tensor, ...]:
    input, needs = arguments[0], arguments[-2]
    return tuple(
        input.new_empty(0)
        if tensor is None or not needed
        else output_like(input if tensor.ndim == input.ndim else tensor).to(tensor.dtype)
        for tensor, needed in zip(arguments[: op.differentiable], needs, strict=True)
    )


# -- their derivatives ------------------------------------------------------------------------------------------------


def _save_for_backward(op: FusedOperator, ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*inputs[: op.count], output[1])
    ctx.statics, ctx.request = inputs[op.count : -1], inputs[-1]


def _backward(op: FusedOperator, ctx: Any, grad_output: Tensor | None, _: Any) -> Any:
    *tensors, statistics = ctx.saved_tensors
    rest = [None] * (op.count - op.differentiable + len(ctx.statics) + 1)
    if grad_output is None:
        return (*[None] * op.differentiable, *rest)
    needs = [bool(needed) for needed in ctx.needs_input_grad[: op.differentiable]]
    gradients = op.backward_op(grad_output, *tensors, statistics, *ctx.statics, needs, ctx.request)
    return (*(gradient if needed else None for gradient, needed in zip(gradients, needs, strict=True)), *rest)


def _save_for_double_backward(op: FusedOperator, ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    ctx.save_for_backward(*inputs[: op.count + 1])
    ctx.statics, ctx.needs = inputs[op.count + 2 : -2], inputs[-2]


def _double_backward(op: FusedOperator, ctx: Any, *grad_gradients: Tensor | None) -> Any:
    """The backward op differentiated through the reference: by the output's gradient and by each tensor."""
    grad_output, *tensors = ctx.saved_tensors
    present = [i for i in range(op.differentiable) if tensors[i] is not None]
    returned = [i for i in present if ctx.needs[i] and grad_gradients[i] is not None]

    def first_derivatives(grad: Tensor, *primals: Tensor) -> tuple[Tensor | None, ...]:
        arguments = list(tensors)
        for position, primal in zip(present, primals, strict=True):
            arguments[position] = primal
        gradients = op.differentiate(grad, arguments, ctx.statics, ctx.needs)
        return tuple(gradients[i] for i in returned)

    pull_back = torch.func.vjp(first_derivatives, grad_output, *(tensors[i] for i in present))[1]
    by_output, *by_tensor = pull_back(tuple(grad_gradients[i] for i in returned))
    result: list[Tensor | None] = [None] * op.count
    for position, gradient in zip(present, by_tensor, strict=True):
        result[position] = gradient
    return (by_output, *result, *[None] * (1 + len(ctx.statics) + 2))
