"""GroupNorm with activation and residual (Wu & He 2018, arXiv:1803.08494) in Triton, forward and backward."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from fastdl.kernels import normalize
from fastdl.kernels.normalize import Gradients, Norm
from fastdl.kernels.shipped import Shipped
from fastdl.kernels.variants import activation_tensor, variants


def forward(
    input: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    num_groups: int,
    eps: float,
    activation: str,
    activation_param: float,
    activation_first: bool,
) -> tuple[Tensor, Tensor]:
    """``act(norm(x) + residual)``, or ``norm(act(x) + residual)`` with ``activation_first``, and the statistics.

    ``input`` is (N, C, *) in float32, float16 or bfloat16 with any strides, ``residual`` of the same shape and dtype;
    weight and bias are (C,) of any floating dtype. The statistics are each group's mean and biased variance, float64
    (2, N, G).
    """
    norm = Norm(num_groups, eps, activation, activation_param, activation_first)
    return normalize.forward(norm, input, weight, bias, residual)


def backward(
    grad_output: Tensor,
    input: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    statistics: Tensor,
    num_groups: int,
    eps: float,
    activation: str,
    activation_param: float,
    activation_first: bool,
    needs: Sequence[bool],
) -> Gradients:
    """The gradients of input, weight, bias and residual; None for what is absent or not in ``needs``."""
    norm = Norm(num_groups, eps, activation, activation_param, activation_first)
    return normalize.backward(norm, grad_output, input, weight, bias, residual, statistics, needs)


# What reaches each path and its largest tiles: shape, whether in channels last, the dtypes. All have 32 groups.
SHIPPED_SHAPES: tuple[tuple[tuple[int, ...], bool, tuple[torch.dtype, ...]], ...] = (
    ((4, 64, 8, 8), False, (torch.bfloat16,)),  # small groups, several to a program
    ((4, 64, 8, 8), True, (torch.bfloat16, torch.float32)),
    ((4, 320, 8, 8), True, (torch.bfloat16,)),  # 10 channels a group
    ((4, 512, 16, 16), True, (torch.bfloat16, torch.float32)),  # the largest tile kept on chip in channels last
    ((32, 128, 64, 64), False, (torch.bfloat16, torch.float32, torch.float16)),  # and in NCHW
    ((32, 128, 64, 64), True, (torch.bfloat16, torch.float32)),  # split
    ((8, 256, 128, 128), False, (torch.bfloat16, torch.float32)),
)


def shipped() -> tuple[Shipped, ...]:
    """What the heuristics choose for these shapes, with SiLU as diffusion models have it."""
    calls = (
        shipped_call(shape, channels_last, dtype) for shape, channels_last, dtypes in SHIPPED_SHAPES for dtype in dtypes
    )
    return variants("group_norm", calls)


def shipped_call(shape: tuple[int, ...], channels_last: bool, dtype: torch.dtype) -> tuple[str, Callable[[], Any]]:
    x = activation_tensor(shape, channels_last, dtype)
    weight, bias = (torch.empty(shape[1], device="meta") for _ in range(2))
    statics = (32, 1e-5, "silu", 0.0, False)

    def call() -> None:
        _, statistics = forward(x, weight, bias, None, *statics)
        backward(x, x, weight, bias, None, statistics, *statics, [True] * 4)

    layout = "channels_last" if channels_last else "nchw"
    return f"{'x'.join(map(str, shape))}/{layout}", call
