"""Checks of arguments, shared by every op, so that a mistake reads the same on every backend."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fastdl.reference.activations import ACTIVATIONS, DEFAULT_PARAMETERS

_INTEGERS = (int, torch.SymInt)
ORDERS = ("norm_act", "act_norm")
FLOATING = frozenset({torch.float32, torch.float16, torch.bfloat16, torch.float64})


def check_input(op: str, input: Tensor, least: int = 2) -> None:
    """``input`` must be a floating-point tensor (N, C, *)."""
    if not isinstance(input, Tensor):
        raise TypeError(f"{op}: input must be a torch.Tensor; got {type(input).__name__}")
    if input.dtype not in FLOATING:
        raise TypeError(f"{op}: input must be float32, float16, bfloat16 or float64; got {input.dtype}")
    if input.ndim < least:
        raise ValueError(f"{op}: input must have at least {least} dimensions (N, C, *); got shape {tuple(input.shape)}")


def check_rows(op: str, input: Tensor, normalized_shape: int | Sequence[int], residual: Tensor | None) -> int:
    """``input`` must end in ``normalized_shape``, and a residual be like it; how many dimensions that are."""
    if not isinstance(input, Tensor):
        raise TypeError(f"{op}: input must be a torch.Tensor; got {type(input).__name__}")
    if input.dtype not in FLOATING:
        raise TypeError(f"{op}: input must be float32, float16, bfloat16 or float64; got {input.dtype}")
    shape = (normalized_shape,) if isinstance(normalized_shape, int) else normalized_shape
    if not isinstance(shape, Sequence) or not all(isinstance(size, _INTEGERS) for size in shape) or not shape:
        raise TypeError(f"{op}: normalized_shape must be an int or ints, one at least; got {normalized_shape!r}")
    if len(shape) > input.ndim or tuple(input.shape[input.ndim - len(shape) :]) != tuple(shape):
        raise ValueError(
            f"{op}: normalized_shape must be the last dimensions of input; got {tuple(shape)} with input of shape "
            f"{tuple(input.shape)}"
        )
    check_residual(op, residual, input.shape, input)
    return len(shape)


def check_row_parameter(op: str, name: str, parameter: Tensor | None, input: Tensor, dimensions: int) -> None:
    """A parameter of a row must be a floating-point tensor of the normalised shape on the input's device."""
    if parameter is None:
        return
    if not isinstance(parameter, Tensor):
        raise TypeError(f"{op}: {name} must be a torch.Tensor or None; got {type(parameter).__name__}")
    if parameter.shape != input.shape[input.ndim - dimensions :]:
        raise ValueError(
            f"{op}: {name} must have the normalized shape {tuple(input.shape[input.ndim - dimensions :])}; got "
            f"{tuple(parameter.shape)}"
        )
    if parameter.dtype not in FLOATING:
        raise TypeError(f"{op}: {name} must be float32, float16, bfloat16 or float64; got {parameter.dtype}")
    if parameter.device != input.device:
        raise ValueError(f"{op}: {name} must be on the input's device {input.device}; got {parameter.device}")


def check_channel_parameter(op: str, name: str, parameter: Tensor | None, input: Tensor) -> None:
    """A parameter by channel must be a floating-point tensor of shape (C,) on the input's device."""
    if parameter is None:
        return
    if not isinstance(parameter, Tensor):
        raise TypeError(f"{op}: {name} must be a torch.Tensor or None; got {type(parameter).__name__}")
    if parameter.shape != input.shape[1:2]:
        raise ValueError(
            f"{op}: {name} must have shape ({input.shape[1]},), one value a channel; got {tuple(parameter.shape)}"
        )
    if parameter.dtype not in FLOATING:
        raise TypeError(f"{op}: {name} must be float32, float16, bfloat16 or float64; got {parameter.dtype}")
    if parameter.device != input.device:
        raise ValueError(f"{op}: {name} must be on the input's device {input.device}; got {parameter.device}")


def check_residual(op: str, residual: Tensor | None, shape: torch.Size, input: Tensor) -> None:
    """A residual must be a tensor of exactly the given shape, dtype of the input, and its device."""
    if residual is None:
        return
    if not isinstance(residual, Tensor):
        raise TypeError(f"{op}: residual must be a torch.Tensor or None; got {type(residual).__name__}")
    if residual.shape != shape:
        raise ValueError(f"{op}: residual must have the output's shape {tuple(shape)}; got {tuple(residual.shape)}")
    if residual.dtype not in FLOATING:
        raise TypeError(f"{op}: residual must be float32, float16, bfloat16 or float64; got {residual.dtype}")
    if residual.device != input.device:
        raise ValueError(f"{op}: residual must be on the input's device {input.device}; got {residual.device}")


def check_eps(op: str, eps: float) -> None:
    """``eps`` keeps the square root from zero: a number, not negative."""
    if not isinstance(eps, (float, int)) or not eps >= 0:
        raise ValueError(f"{op}: eps must be a number of at least 0; got {eps!r}")


def resolve_activation(op: str, activation: str, parameter: float | None) -> float:
    """Checks an activation's name and parameter; returns the parameter that a kernel gets (0.0 where it takes none)."""
    if activation not in ACTIVATIONS:
        raise ValueError(f"{op}: activation must be one of {', '.join(ACTIVATIONS)}; got {activation!r}")
    default = DEFAULT_PARAMETERS.get(activation)
    if parameter is None:
        return 0.0 if default is None else default
    if default is None:
        raise ValueError(
            f"{op}: activation_param is for {' and '.join(DEFAULT_PARAMETERS)}; got {parameter!r} with {activation!r}"
        )
    if not isinstance(parameter, (float, int)):
        raise TypeError(f"{op}: activation_param must be a number or None; got {type(parameter).__name__}")
    return float(parameter)


def check_order(op: str, order: str, orders: tuple[str, ...] = ORDERS) -> None:
    """``order`` must be one of ``orders``."""
    if order not in orders:
        raise ValueError(f"{op}: order must be one of {', '.join(orders)}; got {order!r}")
