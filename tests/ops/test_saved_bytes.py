"""Bytes kept for backward beside eager torch's: the input and two statistics a group, nothing of that size again."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import fastdl
from fastdl.ops import batch_norm, conv_norm_act, group_norm
from tests.support.backends import BACKENDS_UNDER_TEST, short
from tests.support.layouts import LAYOUTS
from tests.support.measure import saved_bytes

SHAPE = (4, 32, 24, 24)
KERNELS = [
    name for name in BACKENDS_UNDER_TEST if name != "reference"
]  # the reference is made of torch's ops, and saves as they do
EAGER: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": F.silu,
    "leaky_relu": lambda u: F.leaky_relu(u, 0.01),
    "gelu": F.gelu,
    "mish": F.mish,
    "hardswish": F.hardswish,
    "relu": F.relu,
}


def inputs(layout: str, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    x = LAYOUTS[layout](SHAPE, torch.randn).to(device, dtype)
    weight, bias = (torch.randn(SHAPE[1], device=device, dtype=dtype) for _ in range(2))
    return x.requires_grad_(), weight.requires_grad_(), bias.requires_grad_()


@pytest.mark.parametrize("backend", KERNELS)
@pytest.mark.parametrize("activation", ["silu", "leaky_relu", "gelu", "mish", "hardswish"])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=short)
@pytest.mark.parametrize("op", ["group_norm", "batch_norm"])
def test_norm_and_activation_save_at_most_055_of_eager(
    op: str, dtype: torch.dtype, layout: str, activation: str, backend: str
) -> None:
    x, weight, bias = inputs(layout, dtype, BACKENDS_UNDER_TEST[backend].device())

    def ours() -> Tensor:
        if op == "group_norm":
            return group_norm(x, 8, weight, bias, activation=activation)
        return batch_norm(x, None, None, weight, bias, True, activation=activation)

    def eager() -> Tensor:
        if op == "group_norm":
            return EAGER[activation](F.group_norm(x, 8, weight, bias))
        return EAGER[activation](F.batch_norm(x, None, None, weight, bias, True))

    with fastdl.use_backend(backend):
        saved = saved_bytes(ours)
    assert saved <= 0.55 * saved_bytes(eager)
    size = x.numel() * x.element_size()
    assert size <= saved <= 1.05 * size


@pytest.mark.parametrize("backend", KERNELS)
def test_relu_saves_no_mask_and_no_output(backend: str) -> None:
    """Eager saves the output of relu, which serves as its mask: no less than ours, which saves the input alone."""
    x, weight, bias = inputs("contiguous", torch.float32, BACKENDS_UNDER_TEST[backend].device())
    with fastdl.use_backend(backend):
        saved = saved_bytes(lambda: batch_norm(x, None, None, weight, bias, True, activation="relu"))
    assert saved <= 0.55 * saved_bytes(lambda: F.relu(F.batch_norm(x, None, None, weight, bias, True)))


@pytest.mark.parametrize("backend", KERNELS)
@pytest.mark.parametrize("order", ["norm_act", "act_norm"])
def test_a_residual_costs_itself_and_no_more(order: str, backend: str) -> None:
    x, weight, bias = inputs("contiguous", torch.float32, BACKENDS_UNDER_TEST[backend].device())
    residual = torch.randn_like(x)
    with fastdl.use_backend(backend):
        saved = saved_bytes(
            lambda: batch_norm(x, None, None, weight, bias, True, activation="silu", order=order, residual=residual)
        )
    assert saved <= 2.05 * x.numel() * x.element_size()


@pytest.mark.parametrize("backend", KERNELS)
def test_conv_norm_act_saves_its_input_and_the_convolutions_output(backend: str) -> None:
    x, weight, bias = inputs("channels_last", torch.float32, BACKENDS_UNDER_TEST[backend].device())
    kernel = torch.randn(32, 32, 1, 1, requires_grad=True)
    with fastdl.use_backend(backend):
        saved = saved_bytes(
            lambda: conv_norm_act(x, kernel, norm_weight=weight, norm_bias=bias, training=True, activation="silu")
        )
    eager = saved_bytes(lambda: F.silu(F.batch_norm(F.conv2d(x, kernel), None, None, weight, bias, True)))
    size = x.numel() * x.element_size()
    assert 2 * size <= saved <= 2.1 * size
    assert saved < 0.7 * eager


@pytest.mark.parametrize("backend", KERNELS)
def test_without_gradients_nothing_is_saved(backend: str) -> None:
    x, weight, bias = inputs("contiguous", torch.float32, BACKENDS_UNDER_TEST[backend].device())
    with fastdl.use_backend(backend), torch.no_grad():
        output = group_norm(x, 8, weight, bias)
    assert output.grad_fn is None
    assert not output.requires_grad
