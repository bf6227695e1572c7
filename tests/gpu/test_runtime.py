"""What only a GPU's runtime shows: streams, graphs, several devices, the cost of copies, and what ``auto`` takes."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

import fastdl
from fastdl.ops import batch_norm, dispatch, group_norm, measured
from tests.support.backends import BACKENDS_UNDER_TEST
from tests.support.measure import copies, count_operators

pytestmark = pytest.mark.gpu

SHAPE = (4, 32, 24, 20)
OPS: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "group_norm": lambda x, weight, bias: group_norm(x, 8, weight, bias, activation="silu"),
    "batch_norm": lambda x, weight, bias: batch_norm(x, None, None, weight, bias, True, activation="relu"),
}
LAYOUTS = {"nchw": torch.contiguous_format, "channels_last": torch.channels_last}


@pytest.fixture(params=["triton", "cuda"])
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    BACKENDS_UNDER_TEST[request.param].device()
    with fastdl.use_backend(request.param):
        yield request.param


def operands(layout: str = "nchw", device: str = "cuda", dtype: torch.dtype = torch.float32) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(SHAPE, generator=generator).to(device, dtype).contiguous(memory_format=LAYOUTS[layout])
    parameters = [torch.randn(SHAPE[1], generator=generator).to(device) for _ in range(2)]
    return [tensor.requires_grad_() for tensor in (x, *parameters)]


def solve(op: str, leaves: list[Tensor]) -> list[Tensor]:
    output = OPS[op](*leaves)
    return [output.detach(), *torch.autograd.grad(output, leaves, torch.ones_like(output))]


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_work_is_queued_on_the_current_stream(op: str, layout: str, backend: str) -> None:
    """The input is written on a stream that is kept busy before; work on another stream would read what was there."""
    leaves = operands(layout)
    expected = solve(op, leaves)
    stale = leaves[0].detach().clone()
    with torch.no_grad():
        leaves[0].fill_(1e3)
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(200_000_000)
        with torch.no_grad():
            leaves[0].copy_(stale)
        found = solve(op, leaves)
    stream.synchronize()
    for ours, before in zip(found, expected, strict=True):
        assert torch.equal(ours, before)


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_calls_can_be_captured_into_a_graph(op: str, layout: str, backend: str) -> None:
    """So nothing waits for the GPU or looks at its memory; replayed on other values it gives their result."""
    leaves = operands(layout)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            solve(op, leaves)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = solve(op, leaves)
    with torch.no_grad():
        leaves[0].mul_(2).add_(1)
    graph.replay()
    torch.cuda.synchronize()
    for ours, expected in zip(captured, solve(op, leaves), strict=True):
        assert torch.equal(ours, expected)


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_results_are_the_same_every_time(op: str, layout: str, dtype: torch.dtype, backend: str) -> None:
    first = solve(op, operands(layout, dtype=dtype))
    for _ in range(20):
        again = solve(op, operands(layout, dtype=dtype))
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_nothing_is_copied(op: str, layout: str, backend: str) -> None:
    leaves = operands(layout)
    solve(op, leaves)
    assert copies(count_operators(lambda: OPS[op](*leaves))) == {}


@pytest.mark.parametrize("op", OPS)
def test_a_call_takes_one_output_and_little_else(op: str, backend: str) -> None:
    leaves = operands()
    with torch.no_grad():
        OPS[op](*leaves)
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        OPS[op](*leaves)
    taken = torch.cuda.max_memory_allocated() - before
    assert taken < 1.5 * leaves[0].numel() * leaves[0].element_size() + (1 << 18)


@pytest.mark.parametrize("op", OPS)
def test_the_device_of_the_tensors_is_used_and_the_current_one_stays(op: str, backend: str) -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    expected = solve(op, operands())
    with torch.cuda.device(0):
        found = solve(op, operands(device="cuda:1"))
        assert torch.cuda.current_device() == 0
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.device == torch.device("cuda:1")
        torch.testing.assert_close(ours.cpu(), theirs.cpu())


def test_running_statistics_follow_torchs(backend: str) -> None:
    x = operands("channels_last")[0].detach()
    ours = torch.zeros(SHAPE[1], device="cuda"), torch.ones(SHAPE[1], device="cuda")
    theirs = ours[0].clone(), ours[1].clone()
    versions = [tensor._version for tensor in ours]
    for momentum in (0.1, 0.5):
        batch_norm(x, *ours, training=True, momentum=momentum)
        torch.nn.functional.batch_norm(x, *theirs, training=True, momentum=momentum)
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-6)
    assert all(tensor._version > before for tensor, before in zip(ours, versions, strict=True))


@pytest.mark.parametrize("op", OPS)
def test_more_samples_than_a_grid_is_high(op: str, backend: str) -> None:
    """65,536 and more in the second and third dimension of a grid cannot be launched."""
    x = torch.randn(66000, 4, 2, 2, device="cuda", requires_grad=True)
    weight, bias = (torch.randn(4, device="cuda", requires_grad=True) for _ in range(2))
    functions = {**OPS, "group_norm": lambda x, weight, bias: group_norm(x, 2, weight, bias, activation="silu")}

    def results() -> list[Tensor]:
        output = functions[op](x, weight, bias)
        return [output.detach(), *torch.autograd.grad(output, (x, weight, bias), torch.ones_like(output))]

    found = results()
    with fastdl.use_backend("reference"):
        expected = results()
    for ours, truth in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, truth, rtol=1e-3, atol=1e-3)


def test_auto_takes_what_was_measured_fastest(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each size on its own backend, told by which one is called."""
    if not all(fastdl.backends()[name].available for name in ("triton", "cuda")):
        pytest.skip("needs both backends")
    rows = {
        measured.key(measured.capabilities()[0], "float32", "nchw", size): backend
        for size, backend in (("small", "cuda"), ("medium", "triton"))
    }
    monkeypatch.setattr(measured, "CHOICES", {"group_norm": rows})
    caches = (dispatch.choose, dispatch.implementation, measured._fastest)
    for cached in caches:
        cached.cache_clear()
    try:
        assert dispatch.choose("group_norm", "auto", "cuda", torch.float32) == dispatch.BY_MEASUREMENT
        small = torch.randn(2, 8, 8, 8, device="cuda", requires_grad=True)
        medium = torch.randn(16, 64, 32, 32, device="cuda", requires_grad=True)
        for x, expected in ((small, "cuda"), (medium, "triton")):
            called = count_operators(lambda x=x: group_norm(x, 4).sum().backward())
            by_cuda = {name for name in called if name.startswith("fastdl_cuda::")}
            assert bool(by_cuda) == (expected == "cuda")
    finally:
        for cached in caches:
            cached.cache_clear()
