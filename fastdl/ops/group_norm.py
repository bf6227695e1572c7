"""Group normalisation with its activation in one op."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from fastdl.ops.arguments import check_channel_parameter, check_eps, check_input, resolve_activation
from fastdl.ops.operator import FusedOperator
from fastdl.reference.group_norm import group_norm_with_statistics


def group_norm(
    input: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    *,
    activation: str = "identity",
    activation_param: float | None = None,
) -> Tensor:
    r"""Group normalisation followed by an activation: ``act(weight * (x - mean) / sqrt(var + eps) + bias)``.

    Mean and biased variance are taken over each sample's group of ``C / num_groups`` channels and all positions
    (Wu & He 2018, "Group Normalization", arXiv:1803.08494, eqs. 1 and 7), in float32 or wider. Backward keeps the input
    and the two statistics of each group; the normalised tensor and the activation's derivative are computed again.

    Args:
        input: (N, C, *), float32, float16, bfloat16 or float64, any strides. Channels-last input gives channels-last
        output.
        num_groups: a divisor of C.
        weight, bias: (C,) or None, of any of these dtypes (float32 parameters serve half-precision input).
        eps: added to the variance, at least 0.
        activation: one of ``fastdl.reference.ACTIVATIONS``.
        activation_param: LeakyReLU's negative slope (0.01) or ELU's alpha (1.0).

    Returns:
        A tensor of the input's shape and dtype.

    Raises:
        TypeError, ValueError: an argument has the wrong type, shape, dtype, device or value; the message names it.
        BackendError: a backend asked for by name cannot serve this call.
    """
    return normalize_groups(input, num_groups, weight, bias, eps, activation, activation_param, "norm_act", None)


def normalize_groups(
    input: Tensor,
    num_groups: int,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    activation: str,
    activation_param: float | None,
    order: str,
    residual: Tensor | None,
    op: str = "group_norm",
) -> Tensor:
    """`group_norm` with the two further arguments that ``conv_norm_act`` needs: the order, and a residual."""
    check_input(op, input)
    check_groups(op, input, num_groups)
    check_channel_parameter(op, "weight", weight, input)
    check_channel_parameter(op, "bias", bias, input)
    check_eps(op, eps)
    parameter = resolve_activation(op, activation, activation_param)
    return GROUP_NORM((input, weight, bias, residual), (num_groups, eps, activation, parameter, order == "act_norm"))


def check_groups(op: str, input: Tensor, num_groups: int) -> None:
    """``num_groups`` must divide the channels, and leave more than one value to each group."""
    channels = input.shape[1]
    if not isinstance(num_groups, int) or isinstance(num_groups, bool):
        raise TypeError(f"{op}: num_groups must be an int; got {type(num_groups).__name__}")
    if num_groups < 1 or channels % num_groups:
        raise ValueError(f"{op}: num_groups must be a positive divisor of the {channels} channels; got {num_groups}")
    if input.shape[0] * (channels // num_groups) * math.prod(input.shape[2:]) == 1:
        raise ValueError(
            f"{op}: input must have more than one value a group to take a variance of; got shape {tuple(input.shape)} "
            f"with num_groups={num_groups}"
        )


def _reference(
    input: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    num_groups: int,
    eps: float,
    activation: str,
    parameter: float,
    activation_first: bool,
) -> tuple[Tensor, Tensor]:
    return group_norm_with_statistics(
        input, num_groups, weight, bias, eps,
        activation=activation, activation_param=parameter, residual=residual,
        order="act_norm" if activation_first else "norm_act",
    )  # fmt: skip


def _empty_statistics(input: Tensor, weight: Any, bias: Any, residual: Any, num_groups: int, *statics: Any) -> Tensor:
    return torch.empty(2, input.shape[0], num_groups, dtype=torch.float64, device=input.device)


GROUP_NORM = FusedOperator(
    "group_norm",
    tensors="Tensor input, Tensor? weight, Tensor? bias, Tensor? residual",
    statics="int num_groups, float eps, str activation, float activation_param, bool activation_first",
    differentiable=4,
    reference=_reference,
    empty_statistics=_empty_statistics,
)
