"""Batch normalisation with activation and residual, in either order, in one op."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from fastdl.ops.arguments import (
    check_channel_parameter,
    check_eps,
    check_input,
    check_order,
    check_residual,
    resolve_activation,
)
from fastdl.ops.dispatch import Implementation
from fastdl.ops.eager import Observer
from fastdl.ops.operator import FusedOperator
from fastdl.reference.batch_norm import batch_norm_with_statistics, update_running_statistics


def batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
    *,
    activation: str = "identity",
    activation_param: float | None = None,
    order: str = "norm_act",
    residual: Tensor | None = None,
) -> Tensor:
    r"""Batch normalisation with an activation and a residual around it.

    ``order="norm_act"``: ``act(weight * (x - mean) / sqrt(var + eps) + bias + residual)``;
    ``order="act_norm"``: the same norm of ``act(x) + residual``, with nothing after it.
    With ``training`` the mean and the biased variance are those of the batch by channel (Ioffe & Szegedy 2015,
    arXiv:1502.03167, algorithm 1), and the running statistics move towards them by ``momentum``, the variance unbiased;
    otherwise the running statistics are used. Backward keeps the input and two statistics a channel.

    Args:
        input: (N, C, *), float32, float16, bfloat16 or float64, any strides. Channels-last input gives channels-last
        output.
        running_mean, running_var: (C,); changed in place by ``training``, where either may be None.
        weight, bias: (C,) or None, of any of these dtypes.
        training: take statistics from the batch.
        momentum: the weight of the batch in the running statistics, 0 to 1.
        eps: added to the variance, at least 0.
        activation, activation_param: as for `fastdl.ops.group_norm`.
        order: ``"norm_act"`` or ``"act_norm"``.
        residual: a tensor of the input's shape, added before the last step.

    Returns:
        A tensor of the input's shape and dtype.

    Raises:
        TypeError, ValueError: an argument has the wrong type, shape, dtype, device or value; the message names it.
        BackendError: a backend asked for by name cannot serve this call.
    """
    return normalize_channels(
        input, running_mean, running_var, weight, bias, training, momentum, eps,
        activation=activation, activation_param=activation_param, order=order, residual=residual,
    )  # fmt: skip


def normalize_channels(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    training: bool,
    momentum: float,
    eps: float,
    *,
    activation: str,
    activation_param: float | None,
    order: str,
    residual: Tensor | None,
    op: str = "batch_norm",
    known: Tensor | None = None,
) -> Tensor:
    """`batch_norm` under the name of the op that was called, for its messages.

    ``known``: the batch's statistics (2 C), float64, from the call that made the input; they are not computed again.
    """
    check_input(op, input)
    check_channel_parameter(op, "running_mean", running_mean, input)
    check_channel_parameter(op, "running_var", running_var, input)
    check_channel_parameter(op, "weight", weight, input)
    check_channel_parameter(op, "bias", bias, input)
    check_eps(op, eps)
    check_order(op, order)
    check_residual(op, residual, input.shape, input)
    if residual is not None and residual.dtype != input.dtype:
        residual = residual.to(input.dtype)
    parameter = resolve_activation(op, activation, activation_param)
    statics = (eps, activation, parameter, order == "act_norm")
    if not training:
        if running_mean is None or running_var is None:
            raise ValueError(f"{op}: running_mean and running_var must be tensors when training=False; got None")
        return BATCH_NORM((input, weight, bias, residual, running_mean, running_var), statics)
    observe = running_statistics_observer(op, input, running_mean, running_var, momentum)
    adapt = None if known is None else partial(_with_statistics, known.view(2, -1))
    return BATCH_NORM((input, weight, bias, residual, None, None), statics, observe, adapt)


def _with_statistics(known: Tensor, kernels: Implementation) -> Implementation:
    """Kernels that take the batch's statistics as given: forward as in evaluation, backward as in training."""
    mean, variance = known

    def forward(
        input: Tensor, weight: Tensor | None, bias: Tensor | None, residual: Tensor | None, _mean: None, _var: None,
        *statics: Any,
    ) -> Any:  # fmt: skip
        return kernels.forward(input, weight, bias, residual, mean, variance, *statics)

    # Not dataclasses.replace, which takes 2 us.
    update = kernels.update_running_statistics
    return Implementation(forward, kernels.backward, kernels.backend, update, kernels.serving)


def running_statistics_observer(
    op: str, input: Tensor, running_mean: Tensor | None, running_var: Tensor | None, momentum: float
) -> Observer | None:
    """What moves the running statistics towards those of the batch, (2, C), on its way; None where there are none.

    They are not differentiable and change in place, so they stay outside the op, which tells the batch's own. Raises
    ValueError where a batch of one value a channel has no variance.
    """
    count = input.numel() // input.shape[1] if input.shape[1] else 0
    if count == 1:
        raise ValueError(
            f"{op}: Expected more than 1 value per channel when training, got input size {tuple(input.shape)}"
        )
    if count == 0 or (running_mean is None and running_var is None):
        return None

    def observe(kernels: Implementation | None, statistics: Tensor) -> None:
        update = kernels.update_running_statistics if kernels is not None else None
        if update is None:
            update_running_statistics(running_mean, running_var, statistics, count, momentum)
            return
        update(running_mean, running_var, statistics, count, momentum)
        # The kernel writes behind autograd's back; whoever saved the old values must be told.
        torch.autograd.graph.increment_version([t for t in (running_mean, running_var) if t is not None])

    return observe


def _reference(
    input: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    eps: float,
    activation: str,
    parameter: float,
    activation_first: bool,
) -> tuple[Tensor, Tensor]:
    return batch_norm_with_statistics(
        input, running_mean, running_var, weight, bias, running_mean is None, eps,
        activation=activation, activation_param=parameter, residual=residual,
        order="act_norm" if activation_first else "norm_act",
    )  # fmt: skip


def _empty_statistics(input: Tensor, *arguments: Any) -> Tensor:
    return torch.empty(2, input.shape[1], dtype=torch.float64, device=input.device)


BATCH_NORM = FusedOperator(
    "batch_norm",
    tensors="Tensor input, Tensor? weight, Tensor? bias, Tensor? residual, Tensor? running_mean, Tensor? running_var",
    statics="float eps, str activation, float activation_param, bool activation_first",
    differentiable=4,
    reference=_reference,
    empty_statistics=_empty_statistics,
)
