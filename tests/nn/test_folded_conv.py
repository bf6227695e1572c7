"""A folded convolution by the CPU's own kernels: the same numbers as torch's, wherever these serve."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fastdl
from fastdl import native
from fastdl.nn.folded_conv import FoldedConvAct, folded
from fastdl.reference import ACTIVATIONS
from fastdl.reference.activations import activate
from tests.support.backends import BACKENDS_UNDER_TEST

SHAPES = {"3x3": (32, 48, 3, 1), "strided": (48, 32, 3, 2), "pointwise": (64, 32, 1, 1)}


@pytest.fixture(autouse=True)
def served() -> None:
    BACKENDS_UNDER_TEST["cpu"].device()
    if "avx512f" not in native.load().features:
        pytest.skip("on processors without AVX-512 the vendor's convolutions serve")


def folded_of(shape: str, activation: str) -> tuple[nn.Sequential, FoldedConvAct]:
    """A convolution and a norm as training leaves them, and both in one."""
    torch.manual_seed(0)
    inputs, outputs, kernel, stride = SHAPES[shape]
    conv, norm = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2), nn.BatchNorm2d(outputs)
    for _ in range(3):
        norm(conv(2 + torch.randn(8, inputs, 6, 6)))
    model = nn.Sequential(conv, norm).eval().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return model, folded(conv, norm, activation)


def ops_of(module: FoldedConvAct, *inputs: Tensor) -> list[str]:
    """The convolutions that ran."""
    with torch.profiler.profile() as profile:
        module(*inputs)
    return [event.key for event in profile.key_averages() if "convolution" in event.key]


@pytest.mark.parametrize("with_residual", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_it_is_what_it_was_folded_from(activation: str, shape: str, with_residual: bool) -> None:
    model, one = folded_of(shape, activation)
    x = torch.randn(5, SHAPES[shape][0], 7, 9).contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        expected = model(x)
        residual = torch.randn_like(expected) if with_residual else None
        expected = activate(expected if residual is None else expected + residual, activation)
        torch.testing.assert_close(one(x, residual), expected, rtol=1e-4, atol=2e-5)
        assert ops_of(one, x, *([] if residual is None else [residual])) == ["fastdl_cpu::convolution_act"]


@pytest.mark.parametrize("way", ["nchw", "bfloat16", "reference", "broadcast", "gradient", "gradient_of_the_residual"])
def test_other_calls_are_the_vendors(way: str) -> None:
    model, one = folded_of("3x3", "relu")
    x = torch.randn(2, 32, 5, 5).contiguous(memory_format=torch.channels_last)
    residual = torch.randn(2, 48, 1, 1) if way == "broadcast" else torch.randn(2, 48, 5, 5)
    x = x.contiguous() if way == "nchw" else x.requires_grad_() if way == "gradient" else x
    residual.requires_grad_(way == "gradient_of_the_residual")
    backend = "reference" if way == "reference" else "auto"
    expected = F.relu(model(x) + residual)
    if way == "bfloat16":
        one, x = one.bfloat16(), x.bfloat16()
        residual = residual.bfloat16()
    with fastdl.use_backend(backend):
        found = one(x, residual)
        assert "fastdl_cpu::convolution_act" not in ops_of(one, x, residual)
    wide = way == "bfloat16"
    torch.testing.assert_close(found.float(), expected, rtol=2e-2 if wide else 1e-4, atol=5e-2 if wide else 2e-5)
    for leaf in (x, residual):
        if leaf.requires_grad:
            ours, theirs = (torch.autograd.grad(y.square().sum(), leaf)[0] for y in (found, expected))
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
