"""conv_norm_act in one node: numbers, gradients and messages are those of the convolution and the norm in turn."""

from __future__ import annotations

import sys
from typing import Any

import pytest
import torch
from torch import Tensor

import fastdl
from fastdl import native
from fastdl.ops import conv_norm_act
from tests.support.backends import BACKENDS_UNDER_TEST

OP = sys.modules["fastdl.ops.conv_norm_act"]
NORMS = {"batch": {}, "group": {"num_groups": 4}, "layer": {}, "instance": {}}


@pytest.fixture(autouse=True)
def served() -> None:
    BACKENDS_UNDER_TEST["cpu"].device()
    if "avx512f" not in native.load().features:
        pytest.skip("on processors without AVX-512 the vendor's convolutions serve")


def channels_last(*size: int) -> Tensor:
    return torch.randn(size).contiguous(memory_format=torch.channels_last)


def leaves(residual: bool = False, bias: bool = False, affine: bool = True) -> dict[str, Tensor]:
    """All tensors of a call that may have a gradient, which they want."""
    torch.manual_seed(0)
    found = {"input": channels_last(3, 32, 6, 5), "weight": torch.randn(48, 32, 3, 3) / 17}
    found |= {"bias": torch.randn(48)} if bias else {}
    found |= {"norm_weight": 1 + 0.3 * torch.randn(48), "norm_bias": torch.randn(48)} if affine else {}
    found |= {"residual": channels_last(3, 48, 6, 5)} if residual else {}
    return {name: tensor.requires_grad_() for name, tensor in found.items()}


def statistics(norm: str) -> dict[str, Tensor]:
    return {"running_mean": torch.zeros(48), "running_var": torch.ones(48)} if norm == "batch" else {}


def results(tensors: dict[str, Tensor], norm: str, **rest: Any) -> list[Tensor | None]:
    """Output, gradients and what became of the running statistics."""
    running = statistics(norm)
    output = conv_norm_act(**tensors, **running, norm=norm, padding=1, training=norm == "batch", **NORMS[norm], **rest)
    wanting = [tensor for tensor in tensors.values() if tensor.requires_grad]
    if not wanting:
        return [output, *running.values()]
    return [output, *torch.autograd.grad(output.square().sum(), wanting), *running.values()]


def in_two_nodes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(OP, "one_node", lambda *_: None)


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("order", ["conv_norm_act", "conv_act_norm"])
@pytest.mark.parametrize("norm", NORMS)
def test_the_same_numbers(norm: str, order: str, bias: bool, residual: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    tensors = leaves(residual, bias)
    ours = results(tensors, norm, order=order, activation="silu")
    in_two_nodes(monkeypatch)
    for one, two in zip(ours, results(tensors, norm, order=order, activation="silu"), strict=True):
        assert one is not None
        assert two is not None
        assert torch.equal(one, two)
        assert one.stride() == two.stride()


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("alone", ["input", "weight", "bias", "norm_weight", "norm_bias", "residual", "none"])
def test_any_one_tensor_may_want_a_gradient(alone: str, norm: str, monkeypatch: pytest.MonkeyPatch) -> None:
    tensors = {name: tensor.requires_grad_(name == alone) for name, tensor in leaves(True, True).items()}
    ours = results(tensors, norm)
    in_two_nodes(monkeypatch)
    for one, two in zip(ours, results(tensors, norm), strict=True):
        assert one is not None
        assert two is not None
        assert torch.equal(one, two)


def test_it_is_one_node_that_keeps_the_convolutions_output() -> None:
    tensors = leaves(affine=False)
    output = conv_norm_act(**tensors, norm="batch", training=True, padding=1)
    node = output.grad_fn
    assert node is not None
    assert type(node).__name__ == "ConvNormActBackward"
    assert {type(before).__name__ for before, _ in node.next_functions if before is not None} == {"AccumulateGrad"}
    kept: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t):  # type: ignore[func-returns-value]
        conv_norm_act(**tensors, norm="batch", training=True, padding=1)
    assert sum(kept) == tensors["input"].numel() + tensors["weight"].numel() + output.numel() + 2 * 48


@pytest.mark.parametrize("norm", NORMS)
def test_second_derivatives(norm: str) -> None:
    """Against the reference in float64, to what float32 leaves of them."""

    def second(tensors: dict[str, Tensor]) -> list[Tensor]:
        output = conv_norm_act(
            **tensors, norm=norm, padding=1, training=norm == "batch", activation="silu", **NORMS[norm]
        )
        first = torch.autograd.grad(output.pow(3).mean(), list(tensors.values()), create_graph=True)
        return list(torch.autograd.grad(sum(g.square().sum() for g in first), list(tensors.values())))

    tensors = leaves(True, True)
    ours = second(tensors)
    with fastdl.use_backend("reference"):
        truth = second({name: tensor.detach().double().requires_grad_() for name, tensor in tensors.items()})
    # A bias before a norm over positions has none, so all are measured by one.
    scale = max(float(other.abs().max()) for other in truth)
    for name, one, other in zip(tensors, ours, truth, strict=True):
        torch.testing.assert_close(one.double(), other, rtol=1e-3, atol=1e-5 * scale, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"norm_weight": torch.ones(47)}, r"norm_weight must have shape \(48,\)"),
        ({"running_mean": torch.zeros(1), "running_var": torch.ones(48)}, r"running_mean must have shape \(48,\)"),
        ({"residual": torch.ones(3, 48, 6, 4)}, "residual must have the output's shape"),
        ({"activation": "rely"}, "activation must be one of"),
        ({"eps": -1.0}, "eps must be a number of at least 0"),
        ({"norm": "group", "num_groups": 5}, "num_groups must be a positive divisor"),
    ],
)
def test_mistakes_are_named_and_change_nothing(wrong: dict[str, Any], message: str) -> None:
    running = statistics("batch") if wrong.get("norm", "batch") == "batch" else {}
    arguments = {"norm": "batch", "training": True, "padding": 1, **running, **wrong}
    with pytest.raises(ValueError, match=f"conv_norm_act: .*{message}"):
        conv_norm_act(channels_last(3, 32, 6, 5), torch.randn(48, 32, 3, 3), **arguments)
    assert all(torch.equal(tensor, statistics("batch")[name]) for name, tensor in running.items() if name not in wrong)


def test_one_value_a_channel_is_refused() -> None:
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        conv_norm_act(channels_last(1, 32, 3, 3), torch.randn(48, 32, 3, 3), norm="batch", training=True)


def test_a_tensor_that_was_changed_meanwhile_is_noticed() -> None:
    tensors = leaves(residual=True)
    residual = tensors.pop("residual") * 1
    output = conv_norm_act(**tensors, residual=residual, norm="batch", training=True, padding=1)
    with torch.no_grad():
        residual.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        output.sum().backward()


def test_backward_twice_and_a_residual_of_another_dtype() -> None:
    tensors = leaves()
    residual = channels_last(3, 48, 6, 5).double().requires_grad_()
    output = conv_norm_act(**tensors, residual=residual, norm="group", num_groups=6, padding=1)
    first = torch.autograd.grad(output.sum(), [*tensors.values(), residual], retain_graph=True)
    second = torch.autograd.grad(output.sum(), [*tensors.values(), residual])
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert first[-1].dtype == torch.float64
