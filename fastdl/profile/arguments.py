"""What a kernel was called with, taken apart: tensors, static arguments, gradients, and which of them are asked for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from torch import Tensor

from fastdl.ops.annotation import BACKWARD, FORWARD
from fastdl.ops.operator import FusedOperator


@dataclass(frozen=True)
class Arguments:
    """The arguments of one call of a kernel, by the part they have in it.

    Attributes:
        direction: ``forward`` or ``backward``.
        names: of the tensors, as the op's schema has them.
        tensors: what the op was given, None where it was given nothing. In the backward of an op that adds a residual
            the first is the sum, and the second None.
        statics: the arguments that are no tensors.
        gradients: of the outputs, in a backward.
        needs: whether each differentiable tensor's gradient is asked for, in a backward.
        adds_residual: whether the second tensor is added to the first, and the sum an output.
    """

    direction: str
    names: tuple[str, ...]
    tensors: tuple[Any, ...]
    statics: tuple[Any, ...]
    gradients: tuple[Tensor | None, ...] = ()
    needs: tuple[bool, ...] = ()
    adds_residual: bool = False


@cache
def argument_names(op: Any) -> tuple[str, ...]:
    """Of all an op's arguments, the tensors first, as its schema has them."""
    return tuple(argument.name for argument in op.forward_op._schema.arguments)


def take_apart(op: Any, direction: str, arguments: Sequence[Any]) -> Arguments:
    """The arguments of a `FusedOperator`'s kernel in one direction, or of dropout's, whose gradient is itself."""
    names = argument_names(op)
    if not isinstance(op, FusedOperator):
        tensors, statics = tuple(arguments[:3]), tuple(arguments[3:])
        if direction == FORWARD:
            return Arguments(direction, names[:3], tensors, statics)
        return Arguments(direction, names[:3], (None, *tensors[1:]), statics, tensors[:1], (True,))
    count = op.count
    names = names[:count]
    if direction == FORWARD:
        tensors, statics = tuple(arguments[:count]), tuple(arguments[count:])
        return Arguments(direction, names, tensors, statics, adds_residual=op.adds_residual)
    first = op.outputs
    behind = first + count + (2 if op.differentiable_statistics else 1)
    return Arguments(
        direction,
        names,
        tuple(arguments[first : first + count]),
        tuple(arguments[behind:-1]),
        tuple(arguments[:first]),
        tuple(bool(needed) for needed in arguments[-1]),
        op.adds_residual,
    )


def backward_of(op: Any, forward: Arguments, result: Any) -> Arguments:
    """The arguments of the backward that a forward leads to, as far as their sizes go: outputs for their gradients."""
    outputs = result if isinstance(result, tuple) else (result,)
    tensors = forward.tensors
    if forward.adds_residual and tensors[1] is not None:
        tensors = (outputs[1], None, *tensors[2:])
    differentiable = getattr(op, "differentiable", 1)
    needs = tuple(t is not None and t.requires_grad for t in forward.tensors[:differentiable])
    if forward.adds_residual:
        needs = (needs[0] or needs[1], False, *needs[2:])
    gradients = outputs[:1]
    if forward.adds_residual:
        gradients = (outputs[0], None if forward.tensors[1] is None else outputs[1])
    return Arguments(
        BACKWARD, forward.names, tensors, forward.statics, gradients, needs, forward.adds_residual
    )  # fmt: skip
