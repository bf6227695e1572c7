"""When a step is captured, and that the capture leaves no trace; torch's capture itself is played by a double."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fastdl.training import cuda_graph


class OnGPU:
    """Images that say they are on a GPU."""

    def __init__(self, count: int) -> None:
        self.device = torch.device("cuda", 0)
        self.count = count

    def __len__(self) -> int:
        return self.count

    def clone(self) -> Tensor:
        return torch.randn(self.count, 3, 4, 4)


@pytest.fixture
def model() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))


@pytest.fixture
def captures(monkeypatch: pytest.MonkeyPatch) -> list[nn.Module]:
    """What was captured; as torch does, the double runs the network a few times and then replaces its ``forward``."""
    found: list[nn.Module] = []

    def make(network: nn.Module, images: tuple[Tensor]) -> nn.Module:
        found.append(network)
        for _ in range(3):
            network(*images)
        network.forward = lambda images: torch.zeros(len(images))  # type: ignore[method-assign]
        return network

    class Nothing:
        def __init__(self, *arguments: Any, **options: Any) -> None: ...
        def __enter__(self) -> None: ...
        def __exit__(self, *arguments: object) -> None: ...

    monkeypatch.setattr(torch.cuda, "make_graphed_callables", make)
    monkeypatch.setattr(torch, "autocast", Nothing)
    monkeypatch.setattr(torch.random, "fork_rng", Nothing)
    return found


def test_a_small_batch_is_captured_and_leaves_no_trace(model: nn.Module, captures: list[nn.Module]) -> None:
    before = {name: value.clone() for name, value in model.state_dict().items()}
    captured = cuda_graph.capture(model, OnGPU(2), "bf16-mixed")  # type: ignore[arg-type]
    assert captured is captures[0]
    assert captured is not model
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])
    assert model(torch.ones(2, 3, 4, 4)).shape == (2, 4, 2, 2)  # not the captured forward


@pytest.mark.parametrize(("count", "precision"), [(cuda_graph.LARGEST_BATCH + 1, "32-true"), (2, "16-mixed")])
def test_other_batches_are_not(model: nn.Module, captures: list[nn.Module], count: int, precision: str) -> None:
    assert cuda_graph.capture(model, OnGPU(count), precision) is None  # type: ignore[arg-type]
    assert cuda_graph.capture(model, torch.ones(2, 3, 4, 4), "32-true") is None
    assert captures == []


def test_a_network_that_is_watched_is_not(model: nn.Module, captures: list[nn.Module]) -> None:
    handle = model[0].register_forward_hook(lambda *arguments: None)  # type: ignore[index]
    assert cuda_graph.capture(model, OnGPU(2), "32-true") is None  # type: ignore[arg-type]
    handle.remove()
    assert cuda_graph.capture(model, OnGPU(2), "32-true") is not None  # type: ignore[arg-type]


def test_where_it_fails_the_network_runs_as_it_is(
    model: nn.Module, captures: list[nn.Module], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fails(network: nn.Module, images: tuple[Tensor]) -> nn.Module:
        network(*images)
        raise RuntimeError("operation not permitted when stream is capturing\nand more")

    before = model[1].running_mean.clone()  # type: ignore[index]
    monkeypatch.setattr(torch.cuda, "make_graphed_callables", fails)
    assert cuda_graph.capture(model, OnGPU(2), "32-true") is None  # type: ignore[arg-type]
    assert "not captured in a CUDA graph: operation not permitted when stream is capturing" in caplog.text
    assert torch.equal(model[1].running_mean, before)  # type: ignore[index]
