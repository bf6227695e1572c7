"""The reference as a backend's kernels: for ``auto``, where a measurement on this machine favours it call by call.

Unlike the reference asked for by name, whose intermediate results torch keeps, it keeps what kernels keep and computes
the rest again in the backward.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastdl.ops.dispatch import SELF_ADJOINT, Implementation, no_backward
from fastdl.reference.dropout import dropout


def reference_kernels(op: str) -> Implementation:
    """Functions of tensors as `Implementation` has them."""
    if op in SELF_ADJOINT:
        return Implementation(dropout, no_backward, "reference")
    from fastdl.ops import OPERATORS

    operator: Any = OPERATORS[op]

    def forward(*arguments: Any) -> tuple[Any, ...]:
        with torch.no_grad():
            output, *others, statistics = operator.reference(*arguments)
        promised = operator.output_like(*arguments)
        output = output if output.stride() == promised.stride() else promised.copy_(output)
        # Without a residual there is no sum to be returned, though the reference gives one.
        others = [None if arguments[1] is None else other for other in others]
        return (output, *others, statistics)

    def backward(*arguments: Any) -> tuple[Tensor | None, ...]:
        *given, needs = arguments
        grads, rest = given[: operator.outputs], given[operator.outputs :]
        tensors = rest[: operator.count]
        statics = tuple(rest[operator.count + (2 if operator.differentiable_statistics else 1) :])

        present = grads if operator.outputs == 1 or grads[1] is not None else grads[:1]
        with torch.no_grad():
            # Not `differentiate`: whoever calls kernels announces them to the profiler. It takes torch.func.vjp, which
            # records within a registered op as well, where the dispatcher's state lies below autograd.
            return operator._differentiate(present, tensors, statics, needs)

    return Implementation(forward, backward, "reference")
