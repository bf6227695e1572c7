"""What ``auto`` takes from the user's own table: on the CPU the reference call by call, with all derivatives."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

import fastdl
from fastdl.ops import OPERATORS, dispatch, measured
from tests.support.backends import BACKENDS_UNDER_TEST
from tests.support.measure import count_operators


def rows(backend: str, dtype: str = "float32") -> dict[str, str]:
    return {
        measured.key("cpu", dtype, layout, size): backend
        for layout in ("nchw", "channels_last", "rows", "separate", "packed")
        for size in ("small", "medium", "large")
    }


ALL_REFERENCE = {op: rows("reference") for op in OPERATORS}


@pytest.fixture(autouse=True)
def kernels() -> Iterator[None]:
    BACKENDS_UNDER_TEST["cpu"].device()
    yield
    dispatch.forget_choices()


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).requires_grad_()


def attention(q: Tensor, k: Tensor, v: Tensor) -> Any:
    return fastdl.ops.scaled_dot_product_attention(q, k, v, is_causal=True)


def attention_with_lse(q: Tensor, k: Tensor, v: Tensor) -> Any:
    return fastdl.ops.scaled_dot_product_attention(q, k, v, return_lse=True)


def batch_norm(x: Tensor, w: Tensor, b: Tensor) -> Any:
    mean, variance = torch.zeros(6), torch.ones(6)
    output = fastdl.ops.batch_norm(x, mean, variance, w, b, training=True, activation="silu")
    return output, mean, variance


def dropout(x: Tensor, r: Tensor) -> Any:
    torch.manual_seed(5)
    return fastdl.ops.dropout(x, 0.3, residual=r)


HEADS = [draw(2, 3, 9, 8, seed=i) for i in range(3)]
IMAGE, CHANNELS = draw(2, 6, 5, 4), [draw(6, seed=i) for i in range(2)]
LINES, WIDTH = [draw(4, 7, seed=i) for i in range(2)], [draw(7, seed=i) for i in range(2)]

CALLS: dict[str, tuple[str, Callable[..., Any], list[Tensor]]] = {
    "attention": ("attention", attention, HEADS),
    "attention_with_lse": ("attention", attention_with_lse, HEADS),
    "group_norm": (
        "group_norm",
        lambda x, w, b: fastdl.ops.group_norm(x, 3, w, b, activation="silu"),
        [IMAGE, *CHANNELS],
    ),
    "group_norm_channels_last": (
        "group_norm",
        lambda x, w, b: fastdl.ops.group_norm(x.contiguous(memory_format=torch.channels_last), 3, w, b),
        [IMAGE, *CHANNELS],
    ),
    "batch_norm": ("batch_norm", batch_norm, [IMAGE, *CHANNELS]),
    "layer_norm": ("layer_norm", lambda x, w, b: fastdl.ops.layer_norm(x, (7,), w, b), [LINES[0], *WIDTH]),
    "layer_norm_of_a_sum": (
        "layer_norm",
        lambda x, r, w, b: fastdl.ops.layer_norm(x, (7,), w, b, residual=r),
        [*LINES, *WIDTH],
    ),
    "rms_norm": ("rms_norm", lambda x, w: fastdl.ops.rms_norm(x, (7,), w), [LINES[0], WIDTH[0]]),
    "dropout": ("dropout", dropout, LINES),
    "norm_act_conv": (
        "norm_act_conv",
        lambda x, nw, nb, w: fastdl.ops.norm_act_conv(
            x, w, norm="group", num_groups=3, norm_weight=nw, norm_bias=nb, padding=1
        ),
        [IMAGE, *CHANNELS, draw(4, 6, 3, 3, seed=9)],
    ),
}


def solved(function: Callable[..., Any], tensors: list[Tensor]) -> list[Tensor]:
    results = function(*tensors)
    outputs = results if isinstance(results, tuple) else (results,)
    differentiable = [output for output in outputs if output.requires_grad]
    generator = torch.Generator().manual_seed(1)
    grads = [torch.randn(output.shape, generator=generator) for output in differentiable]
    return [*(o.detach() for o in outputs), *torch.autograd.grad(differentiable, tensors, grads)]


@pytest.mark.parametrize("name", CALLS)
def test_the_reference_serves_where_it_was_measured_faster(name: str) -> None:
    op, function, tensors = CALLS[name]
    with fastdl.use_backend("reference"):
        expected = solved(function, tensors)
    with dispatch.assuming_choices("cpu", ALL_REFERENCE):
        assert dispatch.choose(op, "auto", "cpu", torch.float32) == dispatch.BY_MEASUREMENT_ON_CPU
        assert dispatch.choose(op, "auto", "cpu", torch.bfloat16) == "cpu"
        assert dispatch.choose(op, "cpu", "cpu", torch.float32) == "cpu"
        called: list[Any] = []
        native = count_operators(lambda: called.append(solved(function, tensors)))
        found = called[0]
    assert not [one for one in native if one.startswith("fastdl_cpu::") and "running" not in one], native
    for ours, truth in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, truth, rtol=1e-5, atol=1e-5)
        assert ours.stride() == truth.stride() or ours.is_contiguous(memory_format=torch.channels_last)
    assert dispatch.choose(op, "auto", "cpu", torch.float32) == "cpu"


def test_each_size_goes_where_it_was_faster() -> None:
    table = {"group_norm": {"cpu float32 nchw small": "reference", "cpu float32 nchw medium": "cpu"}}
    small, medium = torch.randn(2, 6, 8, 8), torch.randn(2, 32, 100, 100)
    with dispatch.assuming_choices("cpu", table):
        for x, ours in ((small, False), (medium, True), (small.contiguous(memory_format=torch.channels_last), True)):
            called = count_operators(lambda x=x: fastdl.ops.group_norm(x, 2))
            assert any(name.startswith("fastdl_cpu::group_norm") for name in called) == ours


@pytest.mark.parametrize("backend", ["cpu", "triton", "no such thing"])
def test_a_row_that_names_no_other_backend_changes_nothing(backend: str) -> None:
    with dispatch.assuming_choices("cpu", {"group_norm": rows(backend)}):
        assert dispatch.choose("group_norm", "auto", "cpu", torch.float32) == "cpu"


def test_compiled_code_follows_it_with_its_gradient() -> None:
    _, function, tensors = CALLS["group_norm"]
    with fastdl.use_backend("reference"):
        expected = solved(function, tensors)
    torch._dynamo.reset()
    with dispatch.assuming_choices("cpu", ALL_REFERENCE):
        found = solved(torch.compile(function, fullgraph=True, backend="aot_eager"), tensors)
    torch._dynamo.reset()
    for ours, truth in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, truth, rtol=1e-5, atol=1e-5)


def test_the_registered_ops_follow_it_too() -> None:
    """Whose backward runs below autograd."""
    x, weight, bias = (tensor.detach().requires_grad_() for tensor in CALLS["group_norm"][2])
    arguments = (x, weight, bias, None, 3, 1e-5, "silu", 0.0, False)

    def gradients(backend: str) -> tuple[Tensor, ...]:
        output = torch.ops.fastdl.group_norm_forward(*arguments, backend)[0]
        return torch.autograd.grad(output, (x, weight, bias), torch.ones_like(output))

    with dispatch.assuming_choices("cpu", ALL_REFERENCE):
        found: list[tuple[Tensor, ...]] = []
        called = count_operators(lambda: found.append(gradients("auto")))
    assert not [name for name in called if name.startswith("fastdl_cpu::")]
    for ours, truth in zip(found[0], gradients("reference"), strict=True):
        assert ours.abs().sum() > 0
        torch.testing.assert_close(ours, truth, rtol=1e-5, atol=1e-5)


def test_second_derivatives_and_transforms_follow_it() -> None:
    x = draw(2, 6, 3, 3).detach().double().requires_grad_()
    table = {"group_norm": rows("reference", "float64")}
    with dispatch.assuming_choices("cpu", table):
        assert dispatch.choose("group_norm", "auto", "cpu", torch.float64) == dispatch.BY_MEASUREMENT_ON_CPU
        assert torch.autograd.gradgradcheck(lambda x: fastdl.ops.group_norm(x, 3), (x,))
        gradient = torch.func.grad(lambda x: fastdl.ops.group_norm(x, 3).square().sum() + (x**3).sum())(x.detach())
    with fastdl.use_backend("reference"):
        expected = torch.func.grad(lambda x: fastdl.ops.group_norm(x, 3).square().sum() + (x**3).sum())(x.detach())
    torch.testing.assert_close(gradient, expected)


def test_on_a_gpu_it_stands_before_the_table_that_ships(monkeypatch: pytest.MonkeyPatch) -> None:
    shipped = {"group_norm": {"9.0 float32 nchw small": "triton", "9.0 float32 nchw medium": "cuda"}}
    monkeypatch.setattr(measured, "CHOICES", shipped)
    monkeypatch.setattr(measured, "capabilities", lambda: ("9.0",))
    monkeypatch.setattr(measured, "_capability_of", lambda index: "9.0")
    small, medium, large = (torch.empty(size) for size in (1000, 1 << 20, 1 << 23))

    def fastest() -> list[str | None]:
        return [measured.fastest("group_norm", x, "nchw") for x in (small, medium, large)]

    own = {"9.0 float32 nchw small": "cuda", "9.0 float32 nchw large": "triton", "8.0 float32 nchw medium": "triton"}
    with measured.assuming("cuda", {"group_norm": own}):
        assert fastest() == ["cuda", "cuda", "triton"]
        assert measured.measured_backends("group_norm", torch.float32) == {"cuda", "triton"}
        assert measured.measured_backends("batch_norm", torch.float32) == frozenset()
        assert measured.measured_backends_on_cpu("group_norm", torch.float32) == frozenset()
    assert fastest() == ["triton", "cuda", None]
    with measured.assuming("cuda", {"group_norm": {"9.0 float32 nchw medium": "triton"}}):
        # The own row overrules the one that ships, by which alone `cuda` would be looked for.
        assert measured.measured_backends("group_norm", torch.float32) == {"triton"}


def test_names_of_no_backend_in_a_file_are_passed_over_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measured, "CHOICES", {})
    monkeypatch.setattr(measured, "capabilities", lambda: ("9.0",))
    monkeypatch.setattr(dispatch, "status", lambda name: dispatch.BackendStatus(name in dispatch.BACKENDS))
    table = {"group_norm": {"9.0 float32 nchw small": "no such thing"}}
    with dispatch.assuming_choices("cuda", table):
        assert dispatch.choose("group_norm", "auto", "cuda", torch.float32) == "triton"
    with dispatch.assuming_choices("cuda", {"group_norm": {"9.0 float32 nchw small": "cuda"}}):
        assert dispatch.choose("group_norm", "auto", "cuda", torch.float32) == dispatch.BY_MEASUREMENT
