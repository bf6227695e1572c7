"""What the ops around a convolution share: its arguments, and those of the norm and the activation beside it."""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

from torch import Tensor

from fastdl.ops.arguments import FLOATING, resolve_activation
from fastdl.ops.batch_norm import normalize_channels
from fastdl.ops.group_norm import normalize_groups
from fastdl.reference.conv_norm_act import CONVOLUTIONS, count_groups, tracked_instance_norm, without_norm

NORMS = ("batch", "group", "layer", "instance", "none")


class Convolution(NamedTuple):
    """A convolution's weight (C_out, C_in / groups, *kernel), bias (C_out,) or None, and how it moves."""

    weight: Tensor
    bias: Tensor | None = None
    stride: int | tuple[int, ...] = 1
    padding: int | tuple[int, ...] | str = 0
    dilation: int | tuple[int, ...] = 1
    groups: int = 1

    def __call__(self, input: Tensor) -> Tensor:
        """By torch."""
        return CONVOLUTIONS[self.weight.ndim](input, *self)


class Norm(NamedTuple):
    """A norm by one of the names in ``NORMS``, and the activation after or before it."""

    norm: str = "batch"
    weight: Tensor | None = None
    bias: Tensor | None = None
    running_mean: Tensor | None = None
    running_var: Tensor | None = None
    num_groups: int | None = None
    training: bool = False
    momentum: float = 0.1
    eps: float = 1e-5
    activation: str = "relu"
    activation_param: float | None = None
    activation_first: bool = False

    def __call__(self, x: Tensor, residual: Tensor | None, op: str, known: Tensor | None = None) -> Tensor:
        """``act(norm(x) + residual)``, or ``norm(act(x) + residual)``; ``known`` as `normalize_channels` takes it."""
        rest: dict[str, Any] = {
            "activation": self.activation,
            "activation_param": self.activation_param,
            "order": "act_norm" if self.activation_first else "norm_act",
            "residual": residual,
        }
        if self.norm == "none":
            parameter = resolve_activation(op, self.activation, self.activation_param)
            return without_norm(x, self.activation, parameter, rest["order"], residual)
        running, affine = (self.running_mean, self.running_var), (self.weight, self.bias)
        if self.norm == "batch" or (self.norm == "instance" and self.running_mean is not None and not self.training):
            return normalize_channels(
                x, *running, *affine, self.training, self.momentum, self.eps, op=op, known=known, **rest
            )
        if self.norm == "instance" and self.running_mean is not None and self.running_var is not None:
            return tracked_instance_norm(
                x, self.running_mean, self.running_var, *affine, self.momentum, self.eps,
                normalize=partial(normalize_channels, op=op), **rest,
            )  # fmt: skip
        groups = count_groups(self.norm, self.num_groups, x.shape[1])
        return normalize_groups(x, groups, *affine, self.eps, op=op, **rest)


def check_norm(op: str, norm: Norm, tracked: tuple[str, ...]) -> None:
    """The norm's name, and what goes with it; ``tracked`` are those that may have running statistics."""
    if norm.norm not in NORMS:
        raise ValueError(f"{op}: norm must be one of {', '.join(NORMS)}; got {norm.norm!r}")
    if (norm.num_groups is not None) != (norm.norm == "group"):
        raise ValueError(
            f"{op}: num_groups must be given for norm='group' and for no other; got {norm.num_groups!r} with "
            f"{norm.norm!r}"
        )
    if (norm.running_mean is None) != (norm.running_var is None):
        raise ValueError(f"{op}: running_mean and running_var must be given together; got one of them")
    if norm.running_mean is not None and norm.norm not in tracked:
        names = " and ".join(repr(name) for name in tracked)
        raise ValueError(f"{op}: running_mean and running_var are for norm={names}; got norm={norm.norm!r}")


def check_weight(op: str, input: Tensor, weight: Tensor) -> None:
    """A floating-point tensor of as many dimensions as the input, three to five."""
    if not isinstance(weight, Tensor):
        raise TypeError(f"{op}: weight must be a torch.Tensor; got {type(weight).__name__}")
    if weight.dtype not in FLOATING:
        raise TypeError(f"{op}: weight must be float32, float16, bfloat16 or float64; got {weight.dtype}")
    if weight.ndim != input.ndim or weight.ndim not in CONVOLUTIONS:
        raise ValueError(
            f"{op}: input and weight must both have 3, 4 or 5 dimensions; got shapes {tuple(input.shape)} and "
            f"{tuple(weight.shape)}"
        )


def check_convolution(op: str, input: Tensor, convolution: Convolution) -> None:
    """What a fused kernel takes for granted, and torch's convolution would refuse."""
    weight, bias, groups = convolution.weight, convolution.bias, convolution.groups
    check_weight(op, input, weight)
    if weight.dtype != input.dtype:
        raise TypeError(f"{op}: weight must have the input's dtype {input.dtype}; got {weight.dtype}")
    out_channels, per_group = weight.shape[:2]
    if not isinstance(groups, int) or groups < 1 or out_channels % groups or per_group * groups != input.shape[1]:
        raise ValueError(
            f"{op}: groups must divide the weight's {out_channels} output channels, and its {per_group} input "
            f"channels times groups be the input's {input.shape[1]}; got {groups!r}"
        )
    if bias is not None and (not isinstance(bias, Tensor) or bias.shape != weight.shape[:1]):
        given = tuple(bias.shape) if isinstance(bias, Tensor) else type(bias).__name__
        raise ValueError(
            f"{op}: bias must be None or of shape ({out_channels},), one value an output channel; got {given}"
        )
    if bias is not None and bias.dtype != input.dtype:
        raise TypeError(f"{op}: bias must have the input's dtype {input.dtype}; got {bias.dtype}")
    for name, tensor in (("weight", weight), ("bias", bias)):
        if tensor is not None and tensor.device != input.device:
            raise ValueError(f"{op}: {name} must be on the input's device {input.device}; got {tensor.device}")
