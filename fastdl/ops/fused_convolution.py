"""Which calls of norm_act_conv a backend's own convolution kernels serve; all others are composed."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Sequence
from functools import cache, lru_cache
from typing import Any

import torch
from torch import Tensor

from fastdl import native
from fastdl.ops.composed import composed
from fastdl.ops.convolutions import OWN_ON_CPU
from fastdl.ops.dispatch import Implementation
from fastdl.ops.layout import has_channels_last

BACKENDS = ("cpu", "triton", "cuda")
"""Those that have convolution kernels of their own."""

# serves(input, weight, stride, padding, dilation, groups): "" or the reason why not.
Serves = Callable[[Tensor, Tensor, list[int], list[int], list[int], int], str]


@cache
def own_kernels(backend: str) -> tuple[Serves, Implementation] | None:
    """The convolution kernels of a backend, and what they serve; None where it has none."""
    if backend == "cpu":
        native.load()
        lanes: int = torch.ops.fastdl_cpu.convolution_lanes.default()

        def served_by_cpu(*arguments: Any) -> str:
            served = lanes and _suits_cpu(lanes, *arguments)
            return "" if served else "float32 in channels last, whole vectors of channels, on AVX-512"

        return served_by_cpu, composed("cpu", OWN_ON_CPU)
    if backend == "cuda":
        native.load("cuda")
        namespace = torch.ops.fastdl_cuda

        def served_by_cuda(*arguments: Any) -> str:
            served: bool = namespace.norm_act_conv_is_served(*arguments)
            return "" if served else "convolutions of 1x1 and depthwise ones are served, in dense channels_last"

        kernels = Implementation(namespace.norm_act_conv_forward.default, namespace.norm_act_conv_backward.default)
        return served_by_cuda, kernels
    if backend != "triton" or importlib.util.find_spec("fastdl.kernels.norm_act_conv") is None:
        return None
    module = importlib.import_module("fastdl.kernels.norm_act_conv")
    guarded = importlib.import_module("fastdl.kernels.tuned").guarded
    return module.serves, Implementation(guarded(module.forward), guarded(module.backward))


def _suits_cpu(
    lanes: int,
    input: Tensor,
    weight: Tensor,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
) -> bool:
    """What csrc/cpu/convolution.h takes, the quick questions first. What torch would refuse is left to torch.

    In Python, as calls that a vendor serves are asked too: a call of an op for it took (2, 64, 8, 8) up to 20 us.
    """
    if groups != 1 or not has_channels_last(input) or input.dtype != torch.float32 or weight.dtype != torch.float32:
        return False
    return _sizes_suit_cpu(lanes, input.shape, weight.shape, (*stride,), (*padding,), (*dilation,))


@lru_cache(maxsize=4096)
def _sizes_suit_cpu(
    lanes: int,
    input: Sequence[int],
    weight: Sequence[int],
    stride: tuple[int, ...],
    padding: tuple[int, ...],
    dilation: tuple[int, ...],
) -> bool:
    out_channels, in_channels, *kernel = weight
    # Less than two vectors of channels fill half a tile: with 16, oneDNN took 0.83 of the time.
    if min(out_channels, in_channels) < 32 or out_channels % lanes or in_channels % lanes or in_channels != input[1]:
        return False
    spatial = len(input) - 2
    if not spatial == len(kernel) == len(stride) == len(padding) == len(dilation) or not input[0]:
        return False
    return all(
        min(size, places, step, distance) >= 1 and margin >= 0 and size + 2 * margin > distance * (places - 1)
        for size, places, step, margin, distance in zip(input[2:], kernel, stride, padding, dilation, strict=True)
    )


def serves(
    backend: str,
    input: Tensor,
    weight: Tensor,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
) -> bool:
    """Whether a backend's own kernels take such a call."""
    own = own_kernels(backend)
    return own is not None and not own[0](input, weight, stride, padding, dilation, groups)


def fused_or_composed(backend: str) -> Implementation:
    """The two kernels of norm_act_conv: a backend's own where they serve the call, else its norms around torch's."""
    others = composed(backend)
    own = own_kernels(backend)
    if own is None:
        return others
    kernels = own[1]

    def forward(*arguments: Any) -> Any:
        served = serves(backend, arguments[0], arguments[3], *arguments[13:17])
        return (kernels if served else others).forward(*arguments)

    def backward(*arguments: Any) -> Any:
        served = serves(backend, arguments[1], arguments[4], *arguments[15:19])
        return (kernels if served else others).backward(*arguments)

    return Implementation(forward, backward, update_running_statistics=others.update_running_statistics)
