"""conv_norm_act as one node of autograd's graph, where the CPU's own convolution serves and the norm takes statistics.

Two nodes of Python, for the convolution and for the norm, cost as much at batches of 2 as what they compute. The
numbers are those of the two.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._functorch.utils import unwrap_dead_wrappers

from fastdl.ops import dispatch
from fastdl.ops.arguments import check_channel_parameter, check_residual, resolve_activation
from fastdl.ops.batch_norm import BATCH_NORM, running_statistics_observer
from fastdl.ops.convolution import Convolution, Norm
from fastdl.ops.eager import Observer
from fastdl.ops.group_norm import GROUP_NORM, check_groups
from fastdl.ops.norm_act_conv import Moves
from fastdl.ops.operator import FusedOperator
from fastdl.reference.conv_norm_act import count_groups


def one_node(
    op: str, input: Tensor, convolution: Convolution, moves: Moves, behind: Norm, residual: Tensor | None
) -> Any:
    """The output of `fastdl.ops.conv_norm_act`; None where the norm is none that this serves.

    For a call that `serving_call` gives to the CPU, with its stride, padding and dilation. Raises what the two ops do.
    """
    batch = behind.norm == "batch"
    if not behind.training if batch else behind.norm == "none" or behind.running_mean is not None:
        return None
    norm = BATCH_NORM if batch else GROUP_NORM
    if dispatch.choose(norm.name, dispatch.requested(), "cpu", torch.float32) != "cpu":
        return None
    kernels = dispatch.implementation(norm.name, "cpu")
    weight, bias = convolution.weight, convolution.bias
    collects = batch and not behind.activation_first
    with torch.no_grad():
        x, moments = torch.ops.fastdl_cpu.convolution_forward.default(input, weight, bias, *moves, collects)
    for name in ("running_mean", "running_var"):
        check_channel_parameter(op, name, getattr(behind, name), x)
    check_channel_parameter(op, "norm_weight", behind.weight, x)
    check_channel_parameter(op, "norm_bias", behind.bias, x)
    check_residual(op, residual, x.shape, x)
    if residual is not None and residual.dtype != x.dtype:
        residual = residual.to(x.dtype)
    parameter = resolve_activation(op, behind.activation, behind.activation_param)
    statics: tuple[Any, ...] = (behind.eps, behind.activation, parameter, behind.activation_first)
    observe = None
    given: tuple[Any, ...] = ()
    if batch:
        observe = running_statistics_observer(op, x, behind.running_mean, behind.running_var, behind.momentum)
        given = tuple(moments.view(2, -1)) if collects else (None, None)
    else:
        groups = count_groups(behind.norm, behind.num_groups, x.shape[1])
        check_groups(op, x, groups)
        statics = (groups, *statics)
    plan = _Plan(norm, kernels, given, statics, moves, observe)
    tensors = (input, weight, bias, behind.weight, behind.bias, residual)
    if torch.is_grad_enabled():
        for tensor in tensors:
            if tensor is not None and tensor.requires_grad:
                return _apply(plan, x, *tensors)
    return plan.normalize(x, *tensors[3:])[0]


class _Plan(NamedTuple):
    """What a call is besides its tensors. ``given`` are the norm's statistics, from the convolution or to be found."""

    norm: FusedOperator
    kernels: dispatch.Implementation
    given: tuple[Any, ...]
    statics: tuple[Any, ...]
    moves: Moves
    observe: Observer | None

    def normalize(
        self, x: Tensor, weight: Tensor | None, bias: Tensor | None, residual: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        output, statistics = self.kernels.forward(x, weight, bias, residual, *self.given, *self.statics)
        if self.observe is not None:
            self.observe(self.kernels, statistics)
        return output, statistics

    def reference(self, input: Tensor, weight: Tensor, bias: Tensor | None, *tensors: Tensor | None) -> Tensor:
        x = torch.convolution(input, weight, bias, *self.moves, False, [0] * (input.ndim - 2), 1)
        output: Tensor = self.norm.reference(x, *tensors, *[None] * len(self.given), *self.statics)[0]
        return output


class ConvNormAct(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, plan: _Plan, x: Tensor, *tensors: Any) -> Tensor:
        """``x``: the convolution's output. Tensors: input, weight, bias, the norm's weight and bias, residual."""
        output, statistics = plan.normalize(x, *tensors[3:])
        ctx.save_for_backward(x, statistics, *tensors)
        ctx.plan = plan
        return output

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Any:
        x, statistics, *tensors = ctx.saved_tensors
        plan, needs = ctx.plan, ctx.needs_input_grad[2:]
        if torch.is_grad_enabled():
            return (None, None, *_differentiate(plan, grad_output, tensors, needs))
        input, weight, _, *others = tensors
        before = needs[0] or needs[1] or needs[2]
        gradients = plan.kernels.backward(
            grad_output, x, *others, *[None] * len(plan.given), statistics, *plan.statics, [before, *needs[3:]]
        )
        grad_x = gradients[0]
        if not before:
            return (None, None, None, None, None, *gradients[1:])
        grad_input, grad_weight = torch.ops.fastdl_cpu.convolution_backward.default(
            grad_x, input, weight, *plan.moves, needs[0], needs[1]
        )
        grad_bias = grad_x.sum([0, *range(2, grad_x.ndim)]) if needs[2] else None
        return (None, None, grad_input, grad_weight, grad_bias, *gradients[1:])


_apply: Any = super(torch.autograd.Function, ConvNormAct).apply  # see fastdl.ops.eager


def _differentiate(
    plan: _Plan, grad_output: Tensor, tensors: Sequence[Tensor | None], needs: Sequence[bool]
) -> list[Tensor | None]:
    """The first derivatives by the reference, themselves differentiable: the backward under ``create_graph``."""
    wanted = [i for i in range(len(tensors)) if needs[i] and tensors[i] is not None]

    def output(*primals: Tensor) -> Tensor:
        arguments = list(tensors)
        for position, primal in zip(wanted, primals, strict=True):
            arguments[position] = primal
        return plan.reference(*arguments)  # type: ignore[arg-type]

    pull_back = torch.func.vjp(output, *(tensors[i] for i in wanted))[1]
    gradients: list[Tensor | None] = [None] * len(tensors)
    # Outside of vjp its results may still be wrapped for the level that has ended; numpy() needs them bare.
    for position, gradient in zip(wanted, unwrap_dead_wrappers(pull_back(grad_output)), strict=True):
        gradients[position] = gradient
    return gradients
