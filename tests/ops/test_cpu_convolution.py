"""The CPU's own convolutions: every shape against float64, what they serve, and that the ops around them use them."""

from __future__ import annotations

import math
import sys
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import fastdl
from fastdl import native, nn
from fastdl.ops import conv_norm_act, convolutions
from fastdl.ops.convolutions import OWN_ON_CPU
from fastdl.reference import ACTIVATIONS
from fastdl.reference.activations import activate
from tests.support.backends import BACKENDS_UNDER_TEST
from tests.support.layouts import LAYOUTS


@pytest.fixture(autouse=True)
def library() -> None:
    """Loaded by the first test, not while tests are collected: it may have to be compiled."""
    BACKENDS_UNDER_TEST["cpu"].device()


class Shape(NamedTuple):
    samples: int
    in_channels: int
    out_channels: int
    size: tuple[int, ...]
    kernel: tuple[int, ...]
    stride: int = 1
    padding: int = 0
    dilation: int = 1


SHAPES = {
    "batch_of_8": Shape(8, 16, 32, (5, 4), (3, 3), 1, 1),
    "batch_of_17_in_three_blocks": Shape(17, 16, 16, (3, 5), (3, 3), 1, 1),
    "one_image_row_by_row": Shape(1, 32, 48, (9, 7), (3, 3), 1, 1),
    "three_images": Shape(3, 16, 80, (6, 11), (3, 3), 1, 1),
    "many_tasks": Shape(9, 16, 16, (33, 31), (3, 3), 1, 1),
    "stride_2": Shape(5, 16, 32, (9, 8), (3, 3), 2, 1),
    "stride_2_even": Shape(2, 32, 16, (8, 8), (2, 2), 2),
    "stride_beyond_the_kernel": Shape(3, 16, 16, (11, 7), (1, 2), 3),
    "padding_beyond_the_kernel": Shape(2, 16, 16, (3, 2), (2, 2), 1, 3),
    "padding_and_stride": Shape(2, 48, 32, (5, 6), (5, 5), 3, 4),
    "dilated": Shape(2, 16, 32, (9, 10), (3, 3), 1, 2, 2),
    "dilated_with_stride": Shape(2, 16, 16, (13, 11), (3, 3), 2, 3, 3),
    "pointwise": Shape(4, 64, 16, (5, 5), (1, 1)),
    "pointwise_of_many_tasks": Shape(9, 16, 32, (19, 17), (1, 1)),
    "pointwise_with_padding": Shape(2, 32, 16, (3, 4), (1, 1), 1, 1),
    "pointwise_stride_2": Shape(4, 16, 64, (5, 6), (1, 1), 2),
    "one_value": Shape(1, 16, 16, (1, 1), (1, 1)),
    "one_position_of_many": Shape(1, 16, 16, (3, 3), (3, 3)),
    "deeper_than_a_block": Shape(2, 2064, 16, (2, 3), (1, 1)),
    "taps_in_blocks": Shape(2, 784, 16, (3, 3), (3, 3), 1, 1),
    "wide": Shape(1, 16, 16, (2, 600), (3, 3), 1, 1),
    "one_dimension": Shape(3, 16, 32, (19,), (4,), 2, 2),
    "three_dimensions": Shape(2, 16, 16, (4, 3, 5), (3, 2, 3), 2, 1),
}


def channels_last(tensor: Tensor) -> Tensor:
    """A copy that is dense with its channels innermost."""
    return tensor.movedim(1, -1).contiguous().movedim(-1, 1)


def draw(shape: Shape, weight_layout: str = "channels_last") -> tuple[Tensor, Tensor, Tensor, list[list[int]]]:
    """The input, the weight, the output's gradient, and stride, padding and dilation."""
    spatial = len(shape.size)
    fan = shape.in_channels * math.prod(shape.kernel)
    x = channels_last(torch.randn(shape.samples, shape.in_channels, *shape.size))
    weight = torch.randn(shape.out_channels, shape.in_channels, *shape.kernel) / math.sqrt(fan)
    moves = [[value] * spatial for value in (shape.stride, shape.padding, shape.dilation)]
    output = torch.convolution(x, weight, None, *moves, False, [0] * spatial, 1)
    weight = channels_last(weight) if weight_layout == "channels_last" else weight
    return x, weight, channels_last(torch.randn_like(output)), moves


def by_torch(x: Tensor, weight: Tensor, bias: Tensor | None, grad: Tensor, moves: list[list[int]]) -> list[Tensor]:
    """Output and gradients of input, weight and bias."""
    leaves = [tensor.detach().clone().requires_grad_() for tensor in (x, weight, bias) if tensor is not None]
    output = torch.convolution(*leaves, *([None] if bias is None else []), *moves, False, [0] * len(moves[0]), 1)
    return [output.detach(), *torch.autograd.grad(output, leaves, grad)]


def assert_close(name: str, found: Tensor, truth: Tensor, torchs: Tensor, products: int) -> None:
    """Thrice torch's own error at most, or what a sum of so many products in their order loses: its random walk."""
    scale = float(truth.abs().max())
    error, others = (float((tensor.double() - truth).abs().max()) for tensor in (found, torchs))
    assert error <= 3 * others + math.sqrt(products) * 2**-24 * scale, (name, error, others, scale)


@pytest.mark.parametrize("weight_layout", ["channels_last", "contiguous"])
@pytest.mark.parametrize("name", SHAPES)
def test_every_shape_is_as_right_as_torch(name: str, weight_layout: str) -> None:
    torch.manual_seed(list(SHAPES).index(name))
    x, weight, grad, moves = draw(SHAPES[name], weight_layout)
    bias = torch.randn(weight.shape[0])
    truth = by_torch(x.double(), weight.double(), bias.double(), grad.double(), moves)
    torchs = by_torch(x, weight, bias, grad, moves)
    output, moments = OWN_ON_CPU.forward(x, weight, bias, *moves, 1, True)
    gradients = OWN_ON_CPU.backward(grad, x, weight, *moves, 1, [True, True, True])
    taps = math.prod(SHAPES[name].kernel)
    products = [x.shape[1] * taps, weight.shape[0] * taps, grad.numel() // grad.shape[1], grad.numel() // grad.shape[1]]
    for which, found, right, other, count in zip(
        ("output", "input", "weight", "bias"), (output, *gradients), truth, torchs, products, strict=True
    ):
        assert found is not None
        assert_close(which, found, right, other, count)
    assert moments is not None
    wide = output.double().transpose(0, 1).flatten(1)
    torch.testing.assert_close(moments, torch.cat([wide.mean(1), wide.var(1, correction=0)]), rtol=1e-5, atol=1e-7)
    assert output.stride() == channels_last(output).stride()
    grad_input, grad_weight, _ = gradients
    assert grad_input is not None
    assert grad_input.stride() == channels_last(grad_input).stride()
    assert grad_weight is not None
    assert grad_weight.stride() == weight.stride()


@pytest.mark.parametrize("name", SHAPES)
def test_every_shape_with_a_residual_and_an_activation(name: str) -> None:
    torch.manual_seed(list(SHAPES).index(name))
    x, weight, grad, moves = draw(SHAPES[name])
    bias, residual = torch.randn(weight.shape[0]), grad
    found = torch.ops.fastdl_cpu.convolution_act(x, weight, bias, residual, *moves, "relu", 0.0)
    truth = by_torch(x.double(), weight.double(), bias.double(), grad.double(), moves)[0] + residual.double()
    torchs = by_torch(x, weight, bias, grad, moves)[0] + residual
    assert_close("output", found, truth.relu(), torchs.relu(), x.shape[1] * math.prod(SHAPES[name].kernel))
    assert found.stride() == channels_last(found).stride()


@pytest.mark.parametrize("name", ["batch_of_17_in_three_blocks", "deeper_than_a_block", "taps_in_blocks"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_every_activation_behind_a_convolution(activation: str, name: str) -> None:
    torch.manual_seed(0)
    x, weight, _, moves = draw(SHAPES[name])
    parameter = 0.3 if activation in ("leaky_relu", "elu") else 0.0
    found = torch.ops.fastdl_cpu.convolution_act(4 * x, weight, None, None, *moves, activation, parameter)
    u = torch.convolution(4 * x.double(), weight.double(), None, *moves, False, [0, 0], 1)
    expected = activate(u, activation, parameter)
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_residual_and_a_bias_of_any_strides(layout: str) -> None:
    torch.manual_seed(0)
    x, weight, _, moves = draw(Shape(3, 16, 32, (5, 4), (3, 3), 1, 1))
    residual = LAYOUTS[layout]((3, 32, 5, 4), torch.randn)
    for bias in (torch.randn(32, 2)[:, 0], torch.randn(1).expand(32)):
        assert torch.equal(
            torch.ops.fastdl_cpu.convolution_act(x, weight, bias, residual, *moves, "silu", 0.0),
            torch.ops.fastdl_cpu.convolution_act(
                x, weight, bias.contiguous(), channels_last(residual), *moves, "silu", 0.0
            ),
        )
        forward = OWN_ON_CPU.forward(x, weight, bias, *moves, 1, False)[0]
        assert torch.equal(forward, OWN_ON_CPU.forward(x, weight, bias.contiguous(), *moves, 1, False)[0])
    with pytest.raises(RuntimeError, match="residual"):
        torch.ops.fastdl_cpu.convolution_act(x, weight, None, residual[:1], *moves, "relu", 0.0)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_strides_are_read(layout: str) -> None:
    torch.manual_seed(0)
    x = LAYOUTS[layout]((3, 16, 5, 4), torch.randn)
    grad = LAYOUTS[layout]((3, 32, 5, 4), torch.randn)
    weight = LAYOUTS[layout]((32, 16, 3, 3), torch.randn)
    moves = [[1, 1], [1, 1], [1, 1]]
    dense = [channels_last(tensor) for tensor in (x, weight, grad)]
    assert torch.equal(
        OWN_ON_CPU.forward(x, weight, None, *moves, 1, False)[0],
        OWN_ON_CPU.forward(dense[0], dense[1], None, *moves, 1, False)[0],
    )
    found = OWN_ON_CPU.backward(grad, x, weight, *moves, 1, [True, True, False])
    expected = OWN_ON_CPU.backward(dense[2], dense[0], dense[1], *moves, 1, [True, True, False])
    for ours, theirs in zip(found[:2], expected[:2], strict=True):
        assert ours is not None
        assert theirs is not None
        assert torch.equal(ours, theirs)


def test_statistics_of_a_large_mean() -> None:
    x, weight, _, moves = draw(SHAPES["many_tasks"])
    output, moments = OWN_ON_CPU.forward(x, weight, torch.full((16,), 1e4), *moves, 1, True)
    wide = output.double().transpose(0, 1).flatten(1)
    assert moments is not None
    mean, variance = moments.view(2, -1)
    torch.testing.assert_close(mean, wide.mean(1), rtol=1e-9, atol=0)
    torch.testing.assert_close(variance, wide.var(1, correction=0), rtol=1e-5, atol=0)


def test_the_result_does_not_depend_on_the_number_of_threads() -> None:
    x, weight, grad, moves = draw(SHAPES["many_tasks"])
    results = []
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            gradients = OWN_ON_CPU.backward(grad, x, weight, *moves, 1, [True, True, False])
            results.append([*OWN_ON_CPU.forward(x, weight, None, *moves, 1, True), *gradients[:2]])
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))  # type: ignore[arg-type]


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_value_that_is_not_finite_stays_in_its_window(value: float) -> None:
    """Padding is skipped or read as zeros, weights of taps outside never meet a value."""
    x, weight, grad, moves = draw(Shape(8, 16, 16, (6, 6), (3, 3), 1, 1))
    x[2, 3, 0, 5] = value
    output = OWN_ON_CPU.forward(x, weight, None, *moves, 1, False)[0]
    expected = F.conv2d(x, weight, padding=1)
    assert torch.equal(output.isfinite(), expected.isfinite())
    weight_gradient = OWN_ON_CPU.backward(grad, x, weight, *moves, 1, [False, True, False])[1]
    assert weight_gradient is not None
    # Of the upper right corner, the kernel's lowest row and its left column see nothing.
    reached = torch.zeros(16, 16, 3, 3, dtype=torch.bool)
    reached[:, 3, :2, 1:] = True
    assert torch.equal(weight_gradient.isfinite(), ~reached)


def test_only_what_is_asked_for_is_computed() -> None:
    x, weight, grad, moves = draw(SHAPES["batch_of_8"])
    assert OWN_ON_CPU.forward(x, weight, None, *moves, 1, False)[1] is None
    assert OWN_ON_CPU.backward(grad, x, weight, *moves, 1, [False, False, False]) == (None, None, None)


@pytest.fixture
def served(library: None) -> None:
    if "avx512f" not in native.load().features:
        pytest.skip("on processors without AVX-512 the vendor's convolutions serve")


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of our own kernels that ran."""
    found: list[str] = []
    for name in ("_cpu_forward", "_cpu_backward"):
        kernel = getattr(convolutions, name)
        monkeypatch.setattr(
            torch.ops.fastdl_cpu, name.replace("_cpu", "convolution"), _Recorded(name, kernel, found), raising=False
        )
    return found


class _Recorded:
    """Stands in for an op's packet, and notes the call."""

    def __init__(self, name: str, kernel: object, found: list[str]) -> None:
        op = getattr(torch.ops.fastdl_cpu, name.replace("_cpu", "convolution")).default

        def default(*arguments: object) -> object:
            found.append(name)
            return op(*arguments)

        self.default = default


@pytest.mark.usefixtures("served")
def test_the_ops_and_modules_use_them(calls: list[str]) -> None:
    x = channels_last(torch.randn(4, 32, 6, 6)).requires_grad_()
    for block in (nn.ConvNormAct2d(32, 48, 3, padding=1), nn.ConvNormAct2d(32, 48, 3, norm="group", num_groups=4)):
        block.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        block(x).sum().backward()
        assert calls == ["_cpu_forward", "_cpu_backward"]
        calls.clear()
    chain = nn.ConvNormActChain(nn.ConvNormAct2d(32, 32, 3, padding=1), nn.ConvNormAct2d(32, 32, 1))
    chain(x).sum().backward()
    assert calls == ["_cpu_forward"] * 2 + ["_cpu_backward"] * 2


@pytest.mark.usefixtures("served")
@pytest.mark.parametrize("refused", ["contiguous", "bfloat16", "odd_channels", "few_channels", "groups", "reference"])
def test_other_calls_are_the_vendors(refused: str, calls: list[str]) -> None:
    channels = {"odd_channels": 40, "few_channels": 16}.get(refused, 64)
    x = torch.randn(4, channels, 6, 6)
    x = x if refused == "contiguous" else channels_last(x)
    groups = 2 if refused == "groups" else 1
    weight = torch.randn(32, channels // groups, 3, 3)
    if refused == "bfloat16":
        x, weight = x.bfloat16(), weight.bfloat16()
    with fastdl.use_backend("reference" if refused == "reference" else "auto"):
        found = conv_norm_act(x, weight, norm="batch", training=True, groups=groups)
    assert calls == []
    assert found.isfinite().all()


@pytest.mark.usefixtures("served")
def test_what_torch_refuses_it_refuses() -> None:
    x, weight = channels_last(torch.randn(2, 32, 5, 5)), torch.randn(32, 32, 3, 3)
    arguments = {"norm": "batch", "training": True}
    for wrong in ({"stride": 0}, {"padding": -1}, {"dilation": 0}, {"stride": (1, 1, 1)}, {"bias": torch.randn(31)}):
        with pytest.raises(RuntimeError):
            conv_norm_act(x, weight, **arguments, **wrong)  # type: ignore[arg-type]
    for wrong_weight in (torch.randn(32, 33, 3, 3), torch.randn(32, 32, 7, 3), torch.randn(32, 32, 3, 3).double()):
        with pytest.raises(RuntimeError):
            conv_norm_act(x, wrong_weight, **arguments)  # type: ignore[arg-type]


@pytest.mark.usefixtures("served")
def test_a_block_is_the_same_by_both(monkeypatch: pytest.MonkeyPatch) -> None:
    """Output, gradients and running statistics of conv_norm_act in training, against the vendor's convolution."""
    results = []
    for vendor in (False, True):
        torch.manual_seed(0)
        block = nn.ConvNormAct2d(32, 64, 3, stride=2, padding=1, bias=True, activation="silu")
        x = channels_last(torch.randn(4, 32, 9, 7)).requires_grad_()
        if vendor:
            monkeypatch.setattr(sys.modules["fastdl.ops.conv_norm_act"], "serving_call", lambda *_: None)
        y = block(x)
        y.square().sum().backward()
        results.append([y, x.grad, *(p.grad for p in block.parameters()), *block.buffers()])
    for ours, vendors in zip(*results, strict=True):
        scale = float(vendors.detach().abs().max())  # type: ignore[union-attr]
        torch.testing.assert_close(ours, vendors, rtol=1e-4, atol=1e-4 * max(scale, 1))
