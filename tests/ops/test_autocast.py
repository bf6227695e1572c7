"""Autocast and activation checkpointing around the ops, with the results that the same code has without them."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

import fastdl
from fastdl import nn
from fastdl.ops import batch_norm, conv_norm_act, group_norm
from tests.support.measure import saved_bytes


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_norms_keep_the_dtype_they_get_under_autocast(backend: str, dtype: torch.dtype) -> None:
    """torch's CPU autocast leaves group_norm and batch_norm alone, as ours do: statistics are float32 anyway."""
    x, weight, bias = torch.randn(2, 8, 5, 5, dtype=dtype), torch.randn(8), torch.randn(8)
    with torch.autocast("cpu", torch.bfloat16):
        assert group_norm(x, 2, weight, bias).dtype == F.group_norm(x, 2, weight, bias).dtype == dtype
        expected = F.batch_norm(x, None, None, weight, bias, True).dtype
        assert batch_norm(x, None, None, weight, bias, True).dtype == expected == dtype


@pytest.mark.parametrize("norm", ["batch", "group", "layer", "instance", "none"])
@pytest.mark.parametrize("order", ["conv_norm_act", "conv_act_norm"])
def test_conv_norm_act_runs_its_convolution_in_bfloat16(backend: str, norm: str, order: str) -> None:
    torch.manual_seed(0)
    module = nn.ConvNormAct2d(
        3, 8, 3, norm=norm, num_groups=2 if norm == "group" else None, activation="silu", order=order, bias=True
    )
    x = torch.randn(4, 3, 9, 9, requires_grad=True)
    residual = torch.randn(4, 8, 7, 7)
    with torch.autocast("cpu", torch.bfloat16):
        output = module(x, residual)
    assert output.dtype == torch.bfloat16
    expected = module(x, residual)
    torch.testing.assert_close(output.float(), expected, rtol=0.05, atol=0.05)
    output.float().square().mean().backward()
    assert x.grad is not None
    assert x.grad.dtype == torch.float32
    for name, parameter in module.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.dtype == torch.float32
        assert parameter.grad.isfinite().all()


def test_autocast_training_step_is_close_to_float32(backend: str) -> None:
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        nn.ConvNormAct2d(3, 8, 3), torch.nn.Conv2d(8, 8, 3), nn.GroupNorm(2, 8, activation="gelu"), torch.nn.Flatten()
    )
    x = torch.randn(4, 3, 9, 9)
    loss = model(x).square().mean()
    expected = torch.autograd.grad(loss, list(model.parameters()))
    with torch.autocast("cpu", torch.bfloat16):
        loss = model(x).float().square().mean()
    gradients = torch.autograd.grad(loss, list(model.parameters()))
    largest = max(float(gradient.abs().max()) for gradient in expected)
    for ours, other in zip(gradients, expected, strict=True):
        torch.testing.assert_close(ours, other, rtol=0.1, atol=0.03 * largest)


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_checkpointing_gives_the_same_gradients(backend: str, use_reentrant: bool) -> None:
    torch.manual_seed(0)
    weight = torch.randn(8, requires_grad=True)
    x = torch.randn(2, 8, 6, 6, requires_grad=True)

    def block(x: Tensor) -> Tensor:
        return group_norm(
            batch_norm(x, None, None, weight, None, True, activation="silu"), 2, weight, activation="gelu"
        )

    expected = torch.autograd.grad(block(x).square().sum(), (x, weight))
    output = checkpoint(block, x, use_reentrant=use_reentrant).square().sum()
    output.backward()
    assert torch.equal(x.grad, expected[0])
    assert torch.equal(weight.grad, expected[1])


def test_checkpointing_saves_the_input_alone(backend: str) -> None:
    x = torch.randn(2, 8, 16, 16, requires_grad=True)

    def block(x: Tensor) -> Tensor:
        for _ in range(4):
            x = group_norm(x, 2, activation="silu")
        return x

    size = x.numel() * x.element_size()
    assert saved_bytes(lambda: block(x)) >= 4 * size
    assert saved_bytes(lambda: checkpoint(block, x, use_reentrant=False)) <= 1.1 * size


def test_checkpointing_inside_a_block_that_chooses_the_backend() -> None:
    """Recomputation is a new forward call, made where backward is called, on the backend asked for there."""
    x = torch.randn(2, 8, 6, 6, requires_grad=True)
    with fastdl.use_backend("reference"):
        output = checkpoint(lambda x: group_norm(x, 2, activation="silu"), x, use_reentrant=False)
        (ours,) = torch.autograd.grad(output.sum(), x)
        (expected,) = torch.autograd.grad(group_norm(x, 2, activation="silu").sum(), x)
    assert torch.equal(ours, expected)


def test_conv_norm_act_takes_a_residual_of_another_precision(backend: str) -> None:
    x, weight, residual = torch.randn(2, 3, 4, 4), torch.randn(8, 3, 1, 1), torch.randn(2, 8, 4, 4)
    with torch.autocast("cpu", torch.bfloat16):
        output = conv_norm_act(x, weight, norm="layer", residual=residual)
    assert output.dtype == torch.bfloat16
    torch.testing.assert_close(
        output.float(), conv_norm_act(x, weight, norm="layer", residual=residual), rtol=0.05, atol=0.05
    )
