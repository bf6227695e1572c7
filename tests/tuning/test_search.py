"""The search with times that a test makes up, and trials with kernels that are none."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton", reason="the triton package is missing")

from fastdl.bench.operands import Operands
from fastdl.bench.timing import Call, Effort, Spread
from fastdl.kernels import tuned
from fastdl.kernels.tuned import FIELDS, Sizes
from fastdl.tuning import measuring
from fastdl.tuning.candidates import all_neighbours, bounds, neighbours
from fastdl.tuning.measuring import Trials, difference
from fastdl.tuning.search import descend, is_gain
from fastdl.tuning.subjects import Plan


def spread(seconds: float, noise: float = 0.0) -> Spread:
    return Spread(seconds, seconds * (1 - noise / 2), seconds * (1 + noise / 2), 5, 1)


def timed(seconds: Callable[[Sizes], float], noise: float = 0.0, refused: Sequence[Sizes] = ()) -> Any:
    calls: list[list[Sizes]] = []

    def evaluate(sizes: Sequence[Sizes], confirm: bool) -> dict[Sizes, Spread]:
        calls.append(list(sizes))
        return {one: spread(seconds(one), noise) for one in sizes if one not in refused or one == sizes[0]}

    return evaluate, calls


def around(sizes: Sizes, index: int) -> list[Sizes]:
    return neighbours("norm_moments", sizes, index, DEFAULT)


DEFAULT = (64, 16, 4)


def distance(target: Sizes) -> Callable[[Sizes], float]:
    """Seconds that fall towards a target, a tenth a halving."""
    return lambda sizes: 1 + 0.1 * sum(abs(a.bit_length() - b.bit_length()) for a, b in zip(sizes, target, strict=True))


@pytest.mark.parametrize("target", [(64, 16, 4), (128, 16, 4), (128, 8, 2), (32, 64, 16), (16, 32, 1), (256, 4, 8)])
def test_the_fastest_is_found_and_its_gain_told(target: Sizes) -> None:
    evaluate, calls = timed(distance(target))
    found = descend(DEFAULT, around, evaluate)
    assert found.best == target
    assert found.complete
    assert found.gain == pytest.approx(distance(target)(DEFAULT)) or target == DEFAULT
    assert found.tried == len({one for call in calls for one in call} - {DEFAULT})
    measured = [one for call in calls for one in call[1:] if one != found.best]
    assert len(measured) == len(set(measured))  # nothing twice


@pytest.mark.parametrize(
    ("gain", "noise", "taken"), [(1.01, 0.0, False), (1.03, 0.0, True), (1.03, 0.05, False), (1.2, 0.05, True)]
)
def test_a_gain_is_two_percent_and_more_than_the_spread(gain: float, noise: float, taken: bool) -> None:
    assert is_gain(spread(gain, noise), spread(1.0, noise)) == taken
    evaluate, _ = timed(lambda sizes: 1.0 if sizes == (128, 16, 4) else gain, noise)
    assert (descend(DEFAULT, around, evaluate).best == (128, 16, 4)) == taken


def test_what_does_not_win_again_is_not_kept() -> None:
    """In the longer measurement the winner is no faster."""

    def evaluate(sizes: Sequence[Sizes], confirm: bool) -> dict[Sizes, Spread]:
        return {one: spread(1.0 if confirm or one != (128, 16, 4) else 0.5) for one in sizes}

    found = descend(DEFAULT, around, evaluate)
    assert found.best == DEFAULT
    assert found.gain == 1.0
    assert found.tried > 0


def test_what_is_refused_is_never_taken() -> None:
    evaluate, _ = timed(distance((256, 16, 4)), refused=[(128, 16, 4)])
    assert descend(DEFAULT, around, evaluate).best == DEFAULT  # the way leads through what was refused


def test_the_time_limit_keeps_the_best_so_far() -> None:
    evaluate, calls = timed(distance((256, 4, 8)))
    found = descend(DEFAULT, around, evaluate, lambda: len(calls) < 2)
    assert found.best == (256, 16, 4)
    assert not found.complete
    found = descend(DEFAULT, around, evaluate, lambda: False)
    assert (found.best, found.tried, found.complete) == (DEFAULT, 0, False)


@pytest.mark.parametrize("name", FIELDS)
def test_candidates_are_what_the_kernels_allow(name: str) -> None:
    default = tuple({"warps": 4, "stages": 2}.get(field, 32) for field in FIELDS[name])
    found = all_neighbours(name, default)
    assert len(found) == len(set(found)) == 2 * len(default)
    for one in found:
        assert sum(a != b for a, b in zip(one, default, strict=True)) == 1
    edge = tuple({"warps": 16, "stages": 5}.get(field, 256) for field in FIELDS[name])
    for sizes in (edge, tuple(bounds(name, field)[0] for field in FIELDS[name])):
        for one in all_neighbours(name, sizes):
            for field, size in zip(FIELDS[name], one, strict=True):
                least, most = {"warps": (1, 16), "stages": (1, 5)}.get(field, (1, 1 << 14))
                if name.startswith(("attention", "convolution")) and field not in ("warps", "stages"):
                    least, most = 16, 256
                assert least <= size <= most


def test_tiles_stay_within_bounds_of_the_plans_own() -> None:
    found = {DEFAULT}
    while True:
        more = {one for sizes in found for index in range(3) for one in around(sizes, index)} - found
        if not more:
            break
        found |= more
    volumes = {one[0] * one[1] for one in found}
    assert (min(volumes), max(volumes)) == (64 * 16 // 8, 64 * 16 * 4)


# -- trials ------------------------------------------------------------------------------------------------------------

BUCKET = {"a": 1}
PLAN = Plan("dropout", tuned.key_of(BUCKET), (256, 4), "forward", ("kernel",), ())


@dataclass
class Kernel:
    """A function whose sizes are a plan's: it doubles its input, and adds what ``errors`` says for the sizes."""

    errors: dict[Sizes, float] = dataclasses.field(default_factory=dict)
    raising: dict[Sizes, Exception] = dataclasses.field(default_factory=dict)
    launched: list[Sizes] = dataclasses.field(default_factory=list)

    def __call__(self, x: Tensor) -> Tensor:
        sizes = tuned.sizes("dropout", PLAN.default, **BUCKET)
        self.launched.append(sizes)
        if sizes in self.raising:
            raise self.raising[sizes]
        return x * 2 + self.errors.get(sizes, 0.0)


class FakeTimer:
    """Tells seconds by the sizes that were launched last."""

    def __init__(self, kernel: Kernel, seconds: Callable[[Sizes], float]) -> None:
        self.kernel, self.seconds = kernel, seconds

    def time(self, call: Call, start: int, count: int) -> float:
        for index in range(start, start + count):
            call(index)
        return count * self.seconds(self.kernel.launched[-1])


def trials(kernel: Kernel, seconds: Callable[[Sizes], float], capture: Any = None) -> Trials:
    x = torch.linspace(-1, 1, 64, requires_grad=True)
    operands = Operands([x], [torch.ones(64)], ())
    benchmark: Any = SimpleNamespace(ours=lambda case: kernel, only_forward=lambda case: False)
    effort = Effort(seconds=0.0, warm_up=0.0, batch=0.0, least_rounds=3)
    timer = FakeTimer(kernel, seconds)
    case: Any = None
    return Trials(benchmark, case, PLAN, operands, timer, quick=effort, thorough=effort, capture=capture)


def test_what_does_not_compile_or_answers_otherwise_is_never_timed() -> None:
    broken: dict[Sizes, Exception] = {(512, 4): RuntimeError("out of resource: shared memory\nand more")}
    kernel = Kernel({(128, 4): 1e-3, (256, 2): float("nan"), (256, 8): 1e-6}, broken)
    # The broken ones would win by far.
    seconds = {(256, 8): 0.9, (256, 4): 1.0, (512, 4): 0.1, (128, 4): 0.1, (256, 2): 0.1}
    measured = trials(kernel, lambda sizes: seconds.get(sizes, 1.2))
    times = measured.evaluate([PLAN.default, (512, 4), (128, 4), (256, 2), (256, 8)])
    assert {one: time.median for one, time in times.items()} == pytest.approx({(256, 4): 1.0, (256, 8): 0.9})
    assert measured.rejected[512, 4] == "RuntimeError: out of resource: shared memory"
    assert measured.rejected[128, 4].startswith("another answer: the output differs by 1.00e-03, at most ")
    assert "nan" in measured.rejected[256, 2]
    found = descend(PLAN.default, lambda s, i: neighbours("dropout", s, i, PLAN.default), measured.evaluate)
    assert found.best == (256, 8)


def test_gradients_count_as_answers() -> None:
    kernel = Kernel()

    class Wrong(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return x * 2

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> Tensor:
            return grad * (2.1 if tuned.sizes("dropout", PLAN.default, **BUCKET) == (128, 4) else 2.0)

    measured = trials(kernel, lambda sizes: 1.0)
    measured.benchmark = SimpleNamespace(ours=lambda case: Wrong.apply, only_forward=lambda case: False)
    assert measured._complaint((256, 8)) == ""
    assert measured._complaint((128, 4)).startswith("another answer: the gradient of the input")


def test_what_is_random_is_drawn_alike() -> None:
    """Else no size of dropout would ever give the answer of another."""
    measured = trials(Kernel(), lambda sizes: 1.0)
    measured.benchmark = SimpleNamespace(
        ours=lambda case: lambda x: x * torch.rand(x.shape), only_forward=lambda case: False
    )
    assert measured._complaint((128, 4)) == ""


def test_what_is_slow_at_first_sight_is_not_timed_at_length() -> None:
    kernel = Kernel()
    measured = trials(kernel, lambda sizes: 2.0 if sizes == (512, 4) else 1.0)
    assert set(measured.evaluate([PLAN.default, (512, 4), (128, 4)])) == {PLAN.default, (128, 4)}
    assert measured.rejected[512, 4] == "slow at first sight: 2.0 times as long"
    launched = len(kernel.launched)
    measured.evaluate([PLAN.default, (512, 4)])
    assert (512, 4) not in kernel.launched[launched:]  # nor a second time


def test_graphs_are_timed_where_calls_can_be_captured() -> None:
    kernel = Kernel()
    seconds = lambda sizes: 8.0 if sizes == (256, 4) else 4.0  # noqa: E731

    def capture(call: Call, sets: int) -> tuple[Call, int]:
        call(0)
        sizes = kernel.launched[-1]
        return (lambda index: kernel.launched.append(sizes)), 4

    times = trials(kernel, seconds, capture).evaluate([PLAN.default, (128, 4)])
    assert {one: time.median for one, time in times.items()} == {(256, 4): 2.0, (128, 4): 1.0}
    assert all(time.calls_per_round == 4 for time in times.values())

    def refuses(call: Call, sets: int) -> tuple[Call, int]:
        raise RuntimeError("not while capturing")

    measured = trials(kernel, seconds, refuses)
    times = measured.evaluate([PLAN.default, (128, 4)])
    assert {one: time.median for one, time in times.items()} == {(256, 4): 8.0, (128, 4): 4.0}
    assert measured.capture is None


def test_a_lost_gpu_stops_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = Kernel(raising={(128, 4): RuntimeError("CUDA error: an illegal memory access was encountered")})
    measured = trials(kernel, lambda sizes: 1.0)
    input: Any = SimpleNamespace(is_cuda=True)

    def lost() -> None:
        raise RuntimeError("CUDA error")

    monkeypatch.setattr("torch.cuda.synchronize", lost)
    measured._expected = {}
    real, measured.operands = measured.operands, Operands([input], [], ())
    with pytest.raises(measuring.DeviceLostError, match="illegal memory access"):
        measured._check_device(kernel.raising[128, 4])

    class LostTimer:
        def time(self, call: Call, start: int, count: int) -> float:
            raise RuntimeError("CUDA error: unspecified launch failure")

    measured.timer = LostTimer()
    with pytest.raises(measuring.DeviceLostError, match="unspecified launch failure"):
        measured.evaluate([PLAN.default])
    measured.operands = real
    with pytest.raises(RuntimeError, match=r"^CUDA error: unspecified"):
        measured.evaluate([PLAN.default])
    assert measured._complaint((128, 4)).startswith("RuntimeError: CUDA error")


def test_differences_are_judged_by_the_dtype_and_the_scale() -> None:
    one = torch.linspace(-100, 100, 50)
    assert difference({"output": one}, {"output": one}) == ""
    assert difference({"output": one + 5e-3}, {"output": one}) == ""
    assert difference({"output": one + 5e-2}, {"output": one}) != ""
    half = one.bfloat16()
    assert difference({"output": half + 2}, {"output": half}) == ""
    assert difference({"output": half + 20}, {"output": half}) != ""
    assert difference({"output": one[:-1]}, {"output": one}) != ""
