"""BatchNorm with activation and residual (Ioffe & Szegedy 2015, arXiv:1502.03167) in Triton, forward and backward.

It is group norm of one sample whose positions are those of all samples, with a group to each channel.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from fastdl.kernels import normalize
from fastdl.kernels.launch import launch, on_device, stride_of
from fastdl.kernels.normalize import Gradients, Norm
from fastdl.kernels.parameters import move_running_statistics
from fastdl.kernels.shipped import Shipped
from fastdl.kernels.variants import activation_tensor, variants


def forward(
    input: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    eps: float,
    activation: str,
    activation_param: float,
    activation_first: bool,
) -> tuple[Tensor, Tensor]:
    """``act(norm(x) + residual)``, or ``norm(act(x) + residual)`` with ``activation_first``, and the statistics.

    Running statistics, where given, are used (evaluation); otherwise those of the batch. ``input`` is (N, C, *) in
    float32, float16 or bfloat16 with any strides, ``residual`` of the same shape and dtype, the rest (C,) of any
    floating dtype. The statistics are each channel's mean and biased variance, float64 (2, C).
    """
    norm = Norm(None, eps, activation, activation_param, activation_first)
    output, statistics = normalize.forward(norm, input, weight, bias, residual, running_mean, running_var)
    return output, statistics.view(2, input.shape[1])


def backward(
    grad_output: Tensor,
    input: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    statistics: Tensor,
    eps: float,
    activation: str,
    activation_param: float,
    activation_first: bool,
    needs: Sequence[bool],
) -> Gradients:
    """The gradients of input, weight, bias and residual; None for what is absent or not in ``needs``."""
    norm = Norm(None, eps, activation, activation_param, activation_first)
    constant = running_mean is not None
    return normalize.backward(norm, grad_output, input, weight, bias, residual, statistics, needs, constant)


def update_running_statistics(
    running_mean: Tensor | None, running_var: Tensor | None, statistics: Tensor, count: int, momentum: float
) -> None:
    """running = (1 - momentum) running + momentum batch, in place and in one launch; the variance made unbiased.

    ``statistics`` is (2, C) as `forward` returns it, ``count`` the number of values a channel. It writes behind
    autograd's back; the caller must tell whoever saved the old values.
    """
    channels = statistics.shape[1]
    unbiased = count / (count - 1) if count > 1 else 1.0
    with on_device(statistics):
        launch(
            move_running_statistics, -(-channels // 256),
            running_mean, running_var, statistics, stride_of(running_mean), stride_of(running_var), channels,
            momentum, unbiased, CHANNELS=256, warps=2,
        )  # fmt: skip


BOTH = (torch.bfloat16, torch.float32)

# What reaches each path and its largest tiles: shape, whether in channels last, the mode, the dtypes.
SHIPPED_SHAPES: tuple[tuple[tuple[int, ...], bool, str, tuple[torch.dtype, ...]], ...] = (
    ((64, 512), False, "training", (torch.bfloat16,)),  # without positions: channels last, on chip
    ((64, 512, 16, 16), False, "training", BOTH),  # NCHW: the largest tile kept on chip by the forward
    ((32, 512, 16, 16), False, "training", BOTH),  # and by the backward
    ((32, 512, 16, 16), False, "act_norm", BOTH),  # which has the most to keep there
    ((64, 64, 56, 56), False, "training", BOTH),  # split
    ((64, 64, 56, 56), True, "training", BOTH),
    ((64, 64, 56, 56), True, "evaluation", (torch.bfloat16,)),
)


def shipped() -> tuple[Shipped, ...]:
    """What the heuristics choose for these shapes, with ReLU and a residual as residual networks have them."""
    calls = (
        shipped_call(shape, channels_last, mode, dtype)
        for shape, channels_last, mode, dtypes in SHIPPED_SHAPES
        for dtype in dtypes
    )
    return variants("batch_norm", calls)


def shipped_call(
    shape: tuple[int, ...], channels_last: bool, mode: str, dtype: torch.dtype
) -> tuple[str, Callable[[], Any]]:
    x = activation_tensor(shape, channels_last, dtype)
    weight, bias, mean, variance = (torch.empty(shape[1], device="meta") for _ in range(4))
    running = (mean, variance) if mode == "evaluation" else (None, None)
    statics = (1e-5, "relu", 0.0, mode == "act_norm")

    def call() -> None:
        _, statistics = forward(x, weight, bias, x, running[0], running[1], *statics)
        backward(x, x, weight, bias, x, running[0], running[1], statistics, *statics, [True] * 4)
        if mode == "training":
            update_running_statistics(mean, variance, statistics, 64, 0.1)

    layout = "channels_last" if channels_last else "nchw"
    return f"{'x'.join(map(str, shape))}/{layout}/{mode}", call
