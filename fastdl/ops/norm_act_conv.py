"""A convolution of a normalised, activated tensor, which is computed again in the backward and never kept."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastdl.ops import dispatch, fused_convolution, measured
from fastdl.ops.arguments import check_channel_parameter, check_eps, check_input, check_order, resolve_activation
from fastdl.ops.batch_norm import running_statistics_observer
from fastdl.ops.convolution import Convolution, Norm, check_convolution, check_norm
from fastdl.ops.convolutions import ALONE_ON_CPU
from fastdl.ops.group_norm import check_groups
from fastdl.ops.layout import has_channels_last, image_layout, output_like
from fastdl.ops.operator import FusedOperator, is_direct
from fastdl.reference.conv_norm_act import count_groups
from fastdl.reference.norm_act_conv import BATCH, NO_NORM, norm_act_conv_with_statistics

Moves = tuple[list[int], list[int], list[int]]
"""Stride, padding and dilation, a number for each spatial dimension."""

ORDERS = ("norm_act_conv", "act_norm_conv")


def norm_act_conv(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    stride: int | tuple[int, ...] = 1,
    padding: int | tuple[int, ...] | str = 0,
    dilation: int | tuple[int, ...] = 1,
    groups: int = 1,
    norm: str = "batch",
    norm_weight: Tensor | None = None,
    norm_bias: Tensor | None = None,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    num_groups: int | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
    activation: str = "relu",
    activation_param: float | None = None,
    order: str = "norm_act_conv",
) -> Tensor:
    r"""``conv(act(norm(x)))``, or ``conv(norm(act(x)))`` for ``order="act_norm_conv"``.

    The order of pre-activation residual networks (He et al. 2016, arXiv:1603.05027, section 3), and what lies between
    the first and the second convolution of any block. Of the activations backward keeps ``x`` alone: the normalised,
    activated tensor that the convolution's weight gradient needs is computed again from it.

    Args:
        input: (N, C_in, *) with one to three spatial dimensions, any strides. Where the input or the weight is
            channels-last the output is.
        weight: (C_out, C_in / groups, *kernel), of the input's dtype; bias: (C_out,) or None.
        stride, padding, dilation, groups: as for ``torch.nn.functional.conv2d``.
        norm: ``batch`` (Ioffe & Szegedy 2015), ``group`` (Wu & He 2018; needs ``num_groups``), ``layer`` and
            ``instance`` (group norm with one group, and with a group a channel), or ``none``.
        norm_weight, norm_bias: (C_in,) or None.
        running_mean, running_var: (C_in,), for ``batch`` alone; changed in place by ``training``, needed without it.
        num_groups: for ``norm="group"`` alone.
        training, momentum, eps, activation, activation_param: as for `fastdl.ops.batch_norm`.
        order: ``"norm_act_conv"`` or ``"act_norm_conv"``.

    Returns:
        (N, C_out, *) in the input's dtype; under autocast in autocast's, as of ``conv2d``.

    Raises:
        TypeError, ValueError: an argument has the wrong type, shape, dtype, device or value; the message names it.
        RuntimeError: torch's convolution refuses its arguments.
        BackendError: a backend asked for by name cannot serve this call.
    """
    check_order("norm_act_conv", order, ORDERS)
    convolution = Convolution(weight, bias, stride, padding, dilation, groups)
    before = Norm(
        norm, norm_weight, norm_bias, running_mean, running_var, num_groups, training, momentum, eps,
        activation, activation_param, order == "act_norm_conv",
    )  # fmt: skip
    return convolve_normalized(input, before, convolution)[0]


def convolve_normalized(
    input: Tensor,
    before: Norm,
    convolution: Convolution,
    *,
    known: Tensor | None = None,
    collect: bool = False,
    op: str = "norm_act_conv",
) -> tuple[Tensor, Tensor | None]:
    """`norm_act_conv` under the name of the op that was called, and the output's statistics for the norm behind it.

    ``known`` are the input's, from the call that made it. ``collect`` asks for the output's: each channel's mean, then
    each channel's biased variance, float64 (2 C); None where that would cost a pass of its own.
    """
    input, convolution = _under_autocast(input, convolution)
    parameter = _check(op, input, before, convolution)
    spatial = input.ndim - 2
    padding = _explicit_padding(convolution, spatial)
    if padding is None:
        return convolution(before(input, None, op)), None
    if has_channels_last(convolution.weight) and not has_channels_last(input):
        input = input.contiguous(memory_format=torch.channels_last if spatial == 2 else torch.channels_last_3d)
    collects = collect and collects_statistics(input, convolution)
    groups = _count_groups(before, input)
    batch = groups == BATCH
    training = batch and before.training
    running = (before.running_mean, before.running_var) if batch and not training else (None, None)
    tensors = (
        input,
        before.weight,
        before.bias,
        convolution.weight,
        convolution.bias,
        *running,
        known if training else None,
    )
    statics = (
        groups, float(before.eps), before.activation, parameter, before.activation_first,
        _each(convolution.stride, spatial), padding, _each(convolution.dilation, spatial), convolution.groups, collects,
    )  # fmt: skip
    found: list[Tensor] = []
    moves = (
        running_statistics_observer(op, input, before.running_mean, before.running_var, before.momentum)
        if training
        else None
    )
    own = 2 * input.shape[1] if batch else 0

    def observe(kernels: dispatch.Implementation | None, statistics: Tensor) -> None:
        if collects:
            found.append(statistics[statistics.shape[0] - 2 * convolution.weight.shape[0] :])
        if moves is not None:
            moves(kernels, statistics[:own].view(2, -1))

    output = NORM_ACT_CONV(tensors, statics, observe if collects or moves is not None else None)
    return output, (found[0] if found else None)


def collects_statistics(input: Tensor, convolution: Convolution) -> bool:
    """Whether the kernels that serve such a call make the output's statistics on the way.

    The vendor's convolutions have no place for them. A traced call is not asked: what serves it may not be known yet.
    """
    return serving_backend(input, convolution) is not None


def serving_backend(input: Tensor, convolution: Convolution) -> str | None:
    """The backend whose own convolution kernels serve such a call; None for the vendor's."""
    served = serving_call(input, convolution)
    return None if served is None else served[0]


def serving_call(input: Tensor, convolution: Convolution) -> tuple[str, Moves] | None:
    """The same, with the call's stride, padding and dilation as kernels take them."""
    weight = convolution.weight
    if torch.compiler.is_compiling() or not is_direct(input):
        return None
    backend: str | None = dispatch.choose(
        "norm_act_conv", dispatch.requested(), input.device.type, input.dtype
    )  # fmt: skip
    if backend in (dispatch.BY_MEASUREMENT, dispatch.BY_MEASUREMENT_ON_CPU):
        backend = measured.fastest("norm_act_conv", input, image_layout(input))
    if backend not in fused_convolution.BACKENDS:
        return None
    for tensor in (weight, convolution.bias):
        if tensor is not None and not (is_direct(tensor) and _is_like(tensor, input)):
            return None
    if convolution.bias is not None and convolution.bias.shape != weight.shape[:1]:
        return None
    moves = _moves(convolution, input.ndim - 2)
    if moves is None or not fused_convolution.serves(backend, input, weight, *moves, convolution.groups):
        return None
    return backend, moves


def convolve_on_cpu(
    input: Tensor, convolution: Convolution, moves: Moves, collect: bool
) -> tuple[Tensor, Tensor | None]:
    """A convolution that `serving_call` says the CPU's own kernels serve, and with ``collect`` its statistics."""
    found: list[Tensor] = []
    output = NORM_ACT_CONV(
        (input, None, None, convolution.weight, convolution.bias, None, None, None),
        (NO_NORM, 0.0, "identity", 0.0, False, *moves, convolution.groups, collect),
        (lambda _, statistics: found.append(statistics)) if collect else None,
        lambda _: ALONE_ON_CPU,
    )
    return output, found[0] if collect else None


def _is_like(tensor: Tensor, input: Tensor) -> bool:
    return tensor.dtype == input.dtype and tensor.device == input.device


def _moves(convolution: Convolution, spatial: int) -> Moves | None:
    """What a convolution asks for in numbers; None for a padding that no kernel here has."""
    padding = _explicit_padding(convolution, spatial)
    if padding is None:
        return None
    return _each(convolution.stride, spatial), padding, _each(convolution.dilation, spatial)


def _under_autocast(input: Tensor, convolution: Convolution) -> tuple[Tensor, Convolution]:
    """Input, weight and bias in the dtype that autocast runs convolutions in, where it is on."""
    weight, bias = convolution.weight, convolution.bias
    if not all(isinstance(tensor, Tensor) for tensor in (input, weight)):
        return input, convolution  # which the checks refuse
    kind = input.device.type
    if kind == "meta" or not torch.is_autocast_enabled(kind) or input.dtype == torch.float64:
        return input, convolution
    dtype = torch.get_autocast_dtype(kind)
    bias = bias.to(dtype) if isinstance(bias, Tensor) else bias
    return input.to(dtype), convolution._replace(weight=weight.to(dtype), bias=bias)


def _check(op: str, input: Tensor, before: Norm, convolution: Convolution) -> float:
    """Raises what `norm_act_conv` promises; returns the activation's parameter."""
    check_input(op, input, least=3)
    check_convolution(op, input, convolution)
    check_norm(op, before, ("batch",))
    running = (before.running_mean, before.running_var)
    if before.norm == "batch" and not before.training and running[0] is None:
        raise ValueError(f"{op}: running_mean and running_var must be tensors when training=False; got None")
    for name, parameter in (
        ("running_mean", running[0]), ("running_var", running[1]),
        ("norm_weight", before.weight), ("norm_bias", before.bias),
    ):  # fmt: skip
        check_channel_parameter(op, name, parameter, input)
    check_eps(op, before.eps)
    return resolve_activation(op, before.activation, before.activation_param)


def _count_groups(before: Norm, input: Tensor) -> int:
    """``num_groups`` as the kernels take it, with `BATCH` and `NO_NORM` for the norms that have none."""
    if before.norm in ("none", "batch"):
        return NO_NORM if before.norm == "none" else BATCH
    groups = count_groups(before.norm, before.num_groups, input.shape[1])
    check_groups("norm_act_conv", input, groups)
    return groups


def _each(value: int | tuple[int, ...] | list[int], spatial: int) -> list[int]:
    """One number for each spatial dimension."""
    if isinstance(value, (tuple, list)):
        return [*value] * (spatial if len(value) == 1 else 1)
    return [value] * spatial


def _explicit_padding(convolution: Convolution, spatial: int) -> list[int] | None:
    """Padding in numbers; None for a ``"same"`` that is longer at one end, which no kernel here has."""
    padding = convolution.padding
    if not isinstance(padding, str):
        return _each(padding, spatial)
    if padding == "valid":
        return [0] * spatial
    dilation = _each(convolution.dilation, spatial)
    totals = [d * (size - 1) for d, size in zip(dilation, convolution.weight.shape[2:], strict=True)]
    return [total // 2 for total in totals] if padding == "same" and all(t % 2 == 0 for t in totals) else None


def _output_like(input: Tensor, *arguments: Any) -> Tensor:
    weight, (stride, padding, dilation) = arguments[2], arguments[12:15]
    sizes = [
        (size + 2 * p - d * (kernel - 1) - 1) // s + 1
        for size, kernel, s, p, d in zip(input.shape[2:], weight.shape[2:], stride, padding, dilation, strict=True)
    ]
    shape = (input.shape[0], weight.shape[0], *sizes)
    if has_channels_last(input):
        order = (0, *range(2, input.ndim), 1)
        dense = torch.empty([shape[i] for i in order], dtype=input.dtype, device=input.device)
        return dense.permute(0, -1, *range(1, input.ndim - 1))
    return torch.empty(shape, dtype=input.dtype, device=input.device)


def _gradient_like(tensor: Tensor, input: Tensor) -> Tensor:
    return output_like(tensor)


def _empty_statistics(input: Tensor, *arguments: Any) -> Tensor:
    weight, num_groups, collect = arguments[2], arguments[7], arguments[-1]
    kept = {NO_NORM: 0, BATCH: 2 * input.shape[1]}.get(num_groups, 2 * input.shape[0] * num_groups)
    return torch.empty(kept + 2 * weight.shape[0] * collect, dtype=torch.float64, device=input.device)


NORM_ACT_CONV = FusedOperator(
    "norm_act_conv",
    tensors="Tensor input, Tensor? norm_weight, Tensor? norm_bias, Tensor weight, Tensor? bias, Tensor? running_mean, "
    "Tensor? running_var, Tensor? known",
    statics="int num_groups, float eps, str activation, float activation_param, bool activation_first, "
    "SymInt[] stride, SymInt[] padding, SymInt[] dilation, int groups, bool collect",
    differentiable=5,
    reference=norm_act_conv_with_statistics,
    empty_statistics=_empty_statistics,
    output_like=_output_like,
    gradient_like=_gradient_like,
)
