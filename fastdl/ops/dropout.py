"""Dropout, and the residual that it is added to, in one op that keeps nothing but a seed.

The op is linear in both, and its gradient is the op itself on the gradient, with the same seed: hence no backward of
its own on any floor, and derivatives of every order.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor

from fastdl.ops import annotation, dispatch
from fastdl.ops.annotation import BACKWARD, FORWARD, announced, announced_reference
from fastdl.ops.arguments import FLOATING, check_residual
from fastdl.ops.attention_arguments import draw_seed
from fastdl.ops.layout import image_layout, output_like
from fastdl.ops.operator import is_direct, is_transformed
from fastdl.reference.dropout import dropout as reference
from fastdl.reference.dropout import dropped_levels


def dropout(input: Tensor, p: float = 0.5, training: bool = True, *, residual: Tensor | None = None) -> Tensor:
    r"""``residual + input * kept / (1 - p)``, where each value is kept with probability 1 - p.

    Srivastava et al. 2014, "Dropout: A Simple Way to Prevent Neural Networks from Overfitting". What is kept is a
    function of a seed, drawn from torch's default generator of the CPU, and of the value's place: the same on every
    device, backend, layout and number of threads. Backward keeps the seed alone and makes the choices again.

    Args:
        input: (\*), float32, float16, bfloat16 or float64, any strides.
        p: the probability of dropping, 0 to 1, applied as the nearest multiple of 2^-16; what is kept is scaled by
            that, so that the expectation is exact.
        training: False leaves the input as it is.
        residual: a tensor of the input's shape. Where dtypes differ both are computed in the wider one, as torch adds.

    Returns:
        A tensor of the input's shape, ``channels_last`` if it is, else contiguous; the input itself where nothing is
        dropped or added.

    Raises:
        TypeError, ValueError: an argument has the wrong type, shape, dtype, device or value; the message names it.
        BackendError: a backend asked for by name cannot serve this call.
    """
    op = "dropout"
    if not isinstance(input, Tensor):
        raise TypeError(f"{op}: input must be a torch.Tensor; got {type(input).__name__}")
    if input.dtype not in FLOATING:
        raise TypeError(f"{op}: input must be float32, float16, bfloat16 or float64; got {input.dtype}")
    if not isinstance(p, (float, int)) or not 0 <= p <= 1:
        raise ValueError(f"{op}: p must be a number from 0 to 1; got {p!r}")
    if not isinstance(training, bool):
        raise TypeError(f"{op}: training must be a bool; got {type(training).__name__}")
    check_residual(op, residual, input.shape, input)
    if not training or dropped_levels(p) == 0:
        return input if residual is None else input + residual
    if residual is not None and residual.dtype != input.dtype:
        wider = torch.promote_types(input.dtype, residual.dtype)
        input, residual = input.to(wider), residual.to(wider)
    return DROPOUT(input, residual, cast(Tensor, draw_seed(p, input)), float(p))


class DropoutOperator:
    """The op on whichever backend serves the call; in `fastdl.ops.operator` stands what the routes are for."""

    name = "dropout"
    outputs = 1

    def __init__(self) -> None:
        schema = "(Tensor input, Tensor? residual, Tensor seed, float dropout_p, str backend) -> Tensor"
        op = torch.library.custom_op("fastdl::dropout_forward", _run, mutates_args=(), schema=schema)
        op.register_fake(_fake)
        op.register_autograd(_traced_backward, setup_context=_save_for_traced_backward)
        self.forward_op = torch.ops.fastdl.dropout_forward.default
        # As in `fastdl.ops.eager`: the C++ apply beneath Function.apply.
        self.apply_eager: Any = super(torch.autograd.Function, _Eager).apply

    @staticmethod
    def layout_of(input: Tensor) -> str:
        """The name of the input's layout in the table of what was measured on GPUs."""
        return image_layout(input)

    def __call__(self, input: Tensor, residual: Tensor | None, seed: Tensor, dropout_p: float) -> Tensor:
        if torch.compiler.is_compiling():
            return self._trace(input, residual, seed, dropout_p)
        request = dispatch.requested()
        backend = dispatch.choose(self.name, request, input.device.type, input.dtype)
        if backend == "reference" or is_transformed():
            return cast(Tensor, announced_reference(self, FORWARD, reference)(input, residual, seed, dropout_p))
        if not is_direct(input):
            return cast(Tensor, self.forward_op(input, residual, seed, dropout_p, request))
        kernels = dispatch.implementation(self.name, backend)
        if torch.is_grad_enabled() and (input.requires_grad or (residual is not None and residual.requires_grad)):
            return cast(Tensor, self.apply_eager(kernels, input, residual, seed, dropout_p))
        forward = kernels.forward if annotation.annotate is None else announced(self, FORWARD, kernels)
        return cast(Tensor, forward(input, residual, seed, dropout_p))

    def _trace(self, input: Tensor, residual: Tensor | None, seed: Tensor, dropout_p: float) -> Tensor:
        request = dispatch.requested_view.backend
        if dispatch.choose_while_tracing(self.name, request, input.device.type, input.dtype) == "reference":
            return reference(input, residual, seed, dropout_p)
        return cast(Tensor, self.forward_op(input, residual, seed, dropout_p, request))


class _Eager(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        kernels: dispatch.Implementation,
        input: Tensor,
        residual: Tensor | None,
        seed: Tensor,
        dropout_p: float,
    ) -> Tensor:
        ctx.save_for_backward(seed)
        ctx.kernels = kernels
        ctx.dropout_p = dropout_p
        forward = kernels.forward if annotation.annotate is None else announced(DROPOUT, FORWARD, kernels)
        return cast(Tensor, forward(input, residual, seed, dropout_p))

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Any:
        (seed,) = ctx.saved_tensors
        _, of_input, of_residual, _, _ = ctx.needs_input_grad
        grad_input = None
        if of_input and torch.is_grad_enabled():
            grad_input = DROPOUT.apply_eager(ctx.kernels, grad_output, None, seed, ctx.dropout_p)
        elif of_input:
            forward = ctx.kernels.forward
            if annotation.annotate is not None:
                forward = announced(DROPOUT, BACKWARD, ctx.kernels, forward)
            grad_input = forward(grad_output, None, seed, ctx.dropout_p)
        return None, grad_input, grad_output if of_residual else None, None, None


def _run(input: Tensor, residual: Tensor | None, seed: Tensor, dropout_p: float, request: str) -> Tensor:
    backend = dispatch.choose("dropout", request, input.device.type, input.dtype)
    if backend == "reference":
        output = announced_reference(DROPOUT, FORWARD, reference)(input, residual, seed, dropout_p)
        return output_like(input).copy_(output)
    forward = announced(DROPOUT, FORWARD, dispatch.implementation("dropout", backend))
    return cast(Tensor, forward(input, residual, seed, dropout_p))


def _fake(input: Tensor, residual: Tensor | None, seed: Tensor, dropout_p: float, request: str) -> Tensor:
    return output_like(input)


def _save_for_traced_backward(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, _, seed, ctx.dropout_p, ctx.request = inputs
    ctx.save_for_backward(seed)


def _traced_backward(ctx: Any, grad_output: Tensor) -> Any:
    (seed,) = ctx.saved_tensors
    grad_input = None
    if ctx.needs_input_grad[0]:
        grad_input = DROPOUT.forward_op(grad_output, None, seed, ctx.dropout_p, ctx.request)
    return grad_input, grad_output if ctx.needs_input_grad[1] else None, None, None, None


DROPOUT = DropoutOperator()
