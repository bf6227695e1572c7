"""The traced route (see `fastdl.ops.operator`): the ops ``fastdl::<name>_forward`` and ``fastdl::<name>_backward``.

Both take the backend's name as it was asked for, ``auto`` included, so that an exported program chooses where it runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from fastdl.ops import dispatch
from fastdl.ops.annotation import BACKWARD, FORWARD, announced, announced_reference

if TYPE_CHECKING:
    from fastdl.ops.operator import FusedOperator


def register_ops(op: FusedOperator, tensors: str, statics: str) -> tuple[Any, Any]:
    """Defines the two ops, with their fake implementations and their autograd; returns their overloads."""
    outputs = ", ".join(["Tensor"] * op.differentiable)
    forward = torch.library.custom_op(
        f"fastdl::{op.name}_forward",
        partial(_run_forward, op),
        mutates_args=(),
        schema=f"({tensors}, {statics}, str backend) -> (Tensor, Tensor{', Tensor' * op.adds_residual})",
    )
    second = "grad_sum" if op.adds_residual else "grad_statistics"
    grad_statistics = f", Tensor? {second}" if op.outputs == 2 else ""
    kept = ", Tensor output" if op.differentiable_statistics else ""
    backward = torch.library.custom_op(
        f"fastdl::{op.name}_backward",
        partial(_run_backward, op),
        mutates_args=(),
        schema=f"(Tensor grad_output{grad_statistics}, {tensors}{kept}, Tensor statistics, {statics}, bool[] needs, "
        f"str backend) -> ({outputs})",
    )
    forward.register_fake(partial(_fake_forward, op))
    backward.register_fake(partial(_fake_backward, op))
    forward.register_autograd(partial(_backward, op), setup_context=partial(_save_for_backward, op))
    backward.register_autograd(partial(_double_backward, op), setup_context=partial(_save_for_double_backward, op))
    namespace = torch.ops.fastdl
    return getattr(namespace, f"{op.name}_forward").default, getattr(namespace, f"{op.name}_backward").default


# -- what the ops do --------------------------------------------------------------------------------------------------


def _run_forward(op: FusedOperator, *arguments: Any) -> tuple[Tensor, ...]:
    inner, request = arguments[:-1], arguments[-1]
    input = inner[0]
    backend = dispatch.choose(op.name, request, input.device.type, input.dtype)
    if backend == "reference":
        output, *others, statistics = announced_reference(op, FORWARD, op.reference)(*inner)
        output = op.output_like(*inner).copy_(output)
        return (output, *(_sum(op, inner, other) for other in others), statistics)
    output, *others, statistics = announced(op, FORWARD, dispatch.implementation(op.name, backend))(*inner)
    return (output, *(_sum(op, inner, other) for other in others), statistics)


def _sum(op: FusedOperator, inner: tuple[Any, ...], sum: Tensor | None) -> Tensor:
    """The sum of input and residual in the layout that the fake implementation promises; empty without a residual."""
    if sum is None or inner[1] is None:
        return cast(Tensor, inner[0].new_empty(0))
    promised = op.output_like(*inner)
    return sum if promised.stride() == sum.stride() else promised.copy_(sum)


@dataclass(frozen=True)
class BackwardArguments:
    """What the backward op is given, taken apart."""

    gradients: tuple[Any, ...]
    tensors: tuple[Any, ...]
    kept: tuple[Any, ...]
    statics: tuple[Any, ...]
    needs: Sequence[bool]
    request: str


def _take_apart(op: FusedOperator, arguments: Sequence[Any]) -> BackwardArguments:
    first = op.outputs
    after = first + op.count
    last = after + (2 if op.differentiable_statistics else 1)
    return BackwardArguments(
        tuple(arguments[:first]), tuple(arguments[first:after]), tuple(arguments[after:last]),
        tuple(arguments[last:-2]), arguments[-2], arguments[-1],
    )  # fmt: skip


def _run_backward(op: FusedOperator, *arguments: Any) -> tuple[Tensor, ...]:
    given = _take_apart(op, arguments)
    input = given.tensors[0]
    backend = dispatch.choose(op.name, given.request, input.device.type, input.dtype)
    if backend == "reference":
        # In a thread of its own: the dispatcher's state in this one lies below autograd, which would record nothing.
        def differentiate(*_: Any) -> list[Tensor | None]:
            with ThreadPoolExecutor(1) as executor:
                return executor.submit(_reference_backward, op, given).result()

        gradients = announced_reference(op, BACKWARD, differentiate)(*arguments[:-1])
    else:
        gradients = announced(op, BACKWARD, dispatch.implementation(op.name, backend))(*arguments[:-1])
    return _without_aliases(
        arguments,
        [
            _in_promised_layout(op, tensor, input, gradient)
            for tensor, gradient in zip(given.tensors[: op.differentiable], gradients, strict=True)
        ],
    )


def _without_aliases(arguments: Sequence[Any], gradients: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """The gradients, copied where they are an argument or one another: autograd passes on what identity is given."""
    seen = {argument.untyped_storage()._cdata for argument in arguments if isinstance(argument, Tensor)}
    distinct = []
    for gradient in gradients:
        distinct.append(gradient.clone() if gradient.untyped_storage()._cdata in seen else gradient)
        seen.add(distinct[-1].untyped_storage()._cdata)
    return tuple(distinct)


def _reference_backward(op: FusedOperator, given: BackwardArguments) -> list[Tensor | None]:
    wanted = [i for i in range(op.differentiable) if given.needs[i] and given.tensors[i] is not None]
    primals = [given.tensors[i].detach().requires_grad_() for i in wanted]
    outputs = op.outputs_of(wanted, given.tensors, given.statics, op.outputs)(*primals)
    pairs = [
        (output, grad)
        for output, grad in zip(outputs, given.gradients, strict=True)
        if grad is not None and output.requires_grad  # the sum is a tensor itself, which may not be asked for
    ]
    gradients: list[Tensor | None] = [None] * op.differentiable
    found = torch.autograd.grad([pair[0] for pair in pairs], primals, [pair[1] for pair in pairs], allow_unused=True)
    for position, gradient in zip(wanted, found, strict=True):
        gradients[position] = torch.zeros_like(given.tensors[position]) if gradient is None else gradient
    return gradients


def _in_promised_layout(op: FusedOperator, tensor: Tensor | None, input: Tensor, gradient: Tensor | None) -> Tensor:
    """A gradient in the layout that the fake implementation promises; an empty tensor stands for "not asked for"."""
    if gradient is None or tensor is None:
        return input.new_empty(0)
    promised = op.gradient_like(tensor, input)
    return gradient if promised.stride() == gradient.stride() else promised.copy_(gradient)


def _fake_forward(op: FusedOperator, *arguments: Any) -> tuple[Tensor, ...]:
    inner = arguments[:-1]
    sums = [inner[0].new_empty(0) if inner[1] is None else op.output_like(*inner)] if op.adds_residual else []
    return (op.output_like(*inner), *sums, op.empty_statistics(*inner))


def _fake_backward(op: FusedOperator, *arguments: Any) -> tuple[Tensor, ...]:
    given = _take_apart(op, arguments)
    input = given.tensors[0]
    return tuple(
        input.new_empty(0) if tensor is None or not needed else op.gradient_like(tensor, input)
        for tensor, needed in zip(given.tensors[: op.differentiable], given.needs, strict=True)
    )


# -- their derivatives ------------------------------------------------------------------------------------------------


def _save_for_backward(op: FusedOperator, ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    tensors, sum = inputs[: op.count], None
    ctx.adds = op.adds_residual and tensors[1] is not None
    if ctx.adds:
        sum = output[1]
    ctx.mark_non_differentiable(*output[op.outputs if ctx.adds or not op.adds_residual else 1 :])
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*op.kept(tensors, sum), *(output if op.differentiable_statistics else output[-1:]))
    ctx.statics, ctx.request = inputs[op.count : -1], inputs[-1]


def _backward(op: FusedOperator, ctx: Any, *grad_outputs: Tensor | None) -> Any:
    saved = ctx.saved_tensors
    rest = [None] * (op.count - op.differentiable + len(ctx.statics) + 1)
    grad_output, *others = grad_outputs[: op.outputs]
    if grad_output is None and all(grad is None for grad in others):
        return (*[None] * op.differentiable, *rest)
    if grad_output is None:
        grad_output = torch.zeros_like(saved[0] if op.adds_residual else saved[op.count])
    needs = [bool(needed) for needed in ctx.needs_input_grad[: op.differentiable]]
    asked = [needs[0] or needs[1], False, *needs[2:]] if ctx.adds else needs
    gradients = list(op.backward_op(grad_output, *others, *saved, *ctx.statics, asked, ctx.request))
    if ctx.adds:
        gradients[1] = gradients[0]
    return (*(gradient if needed else None for gradient, needed in zip(gradients, needs, strict=True)), *rest)


def _save_for_double_backward(op: FusedOperator, ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    given = _take_apart(op, inputs)
    ctx.save_for_backward(*given.gradients, *given.tensors)
    ctx.statics, ctx.needs, ctx.kept = given.statics, given.needs, len(given.kept)


def _double_backward(op: FusedOperator, ctx: Any, *grad_gradients: Tensor | None) -> Any:
    """The backward op differentiated through the reference: by the outputs' gradients and by each tensor."""
    first = op.outputs
    grad_outputs, tensors = ctx.saved_tensors[:first], ctx.saved_tensors[first:]
    given = [i for i in range(first) if grad_outputs[i] is not None]
    present = [i for i in range(op.differentiable) if tensors[i] is not None and tensors[i].is_floating_point()]
    returned = [i for i in present if ctx.needs[i] and grad_gradients[i] is not None]

    def first_derivatives(*primals: Tensor) -> tuple[Tensor | None, ...]:
        grads, arguments = list(grad_outputs), list(tensors)
        for position, primal in zip(given, primals, strict=False):
            grads[position] = primal
        for position, primal in zip(present, primals[len(given) :], strict=True):
            arguments[position] = primal
        gradients = op.differentiate(grads, arguments, ctx.statics, ctx.needs)
        return tuple(gradients[i] for i in returned)

    primals = (*(grad_outputs[i] for i in given), *(tensors[i] for i in present))
    pull_back = torch.func.vjp(first_derivatives, *primals)[1]
    found = pull_back(tuple(grad_gradients[i] for i in returned))
    by_output: list[Tensor | None] = [None] * first
    for position, gradient in zip(given, found, strict=False):
        by_output[position] = gradient
    by_tensor: list[Tensor | None] = [None] * op.count
    for position, gradient in zip(present, found[len(given) :], strict=True):
        by_tensor[position] = gradient
    return (*by_output, *by_tensor, *[None] * (ctx.kept + len(ctx.statics) + 2))
