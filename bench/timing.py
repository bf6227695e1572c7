"""Timing: contenders take turns within every round, so that whatever drifts on the machine hits them all alike."""

from __future__ import annotations

import gc
import math
import random
import statistics
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Protocol

import torch

Call = Callable[[int], object]
"""``call(i)`` does the work once on the ``i``-th set of inputs (taken modulo the number of sets)."""


@dataclass(frozen=True)
class Spread:
    """Seconds a call: the median over the rounds and the quartiles around it.

    ``between_visits`` is the larger over the smaller of two medians that were taken minutes apart; None for one.
    """

    median: float
    lower_quartile: float
    upper_quartile: float
    rounds: int
    calls_per_round: int
    between_visits: float | None = None

    def of_one(self, count: int) -> Spread:
        """Of one of ``count`` calls that were timed together."""
        return Spread(
            self.median / count,
            self.lower_quartile / count,
            self.upper_quartile / count,
            self.rounds,
            self.calls_per_round * count,
            self.between_visits,
        )

    @property
    def relative(self) -> float:
        """The interquartile range as a share of the median."""
        return (self.upper_quartile - self.lower_quartile) / self.median if self.median else 0.0


class Timer(Protocol):
    """Measures a run of calls."""

    def time(self, call: Call, start: int, count: int) -> float:
        """Seconds that ``call(start)`` ... ``call(start + count - 1)`` take together."""


class CpuTimer:
    """Wall-clock time of calls that have finished when they return. What a call returns is freed within its time."""

    def time(self, call: Call, start: int, count: int) -> float:
        begin = time.perf_counter()
        for index in range(start, start + count):
            call(index)
        return time.perf_counter() - begin


class CudaTimer:
    """Time between two CUDA events around the calls, so that the launches run ahead as they do in training."""

    def time(self, call: Call, start: int, count: int) -> float:
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        torch.cuda.synchronize()
        begin.record()
        for index in range(start, start + count):
            call(index)
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) / 1e3


def timer_for(device: torch.device) -> Timer:
    return CudaTimer() if device.type == "cuda" else CpuTimer()


@dataclass(frozen=True)
class Effort:
    """How long to measure: ``seconds`` for all contenders of one comparison together, within bounds on the rounds.

    ``batch`` is the least time of one contender's turn: short calls are repeated within a turn until reading the clock
    does not count. A turn of calls no longer than ``settle`` begins with one that is not timed.
    """

    seconds: float = 1.4
    warm_up: float = 0.05
    batch: float = 5e-4
    least_rounds: int = 7
    most_rounds: int = 400
    settle: float = 2e-2


FULL = Effort()
QUICK = Effort(seconds=0.6, warm_up=0.03, least_rounds=5)


def _nothing(contender: str) -> AbstractContextManager[None]:
    return nullcontext()


def interleave(
    contenders: Mapping[str, Call],
    timer: Timer,
    effort: Effort,
    around: Callable[[str], AbstractContextManager[None]] = _nothing,
) -> dict[str, Spread]:
    """Times every contender in every round, in an order that is drawn anew for each.

    In an order that only shifts, each would come behind the same one every time, and find the caches as that one leaves
    them: a forward pass took a quarter longer behind eager's backward.

    Nor may it matter whose memory is still in the caches. What a contender writes lies where its allocator puts it, and
    those that share torch's find it warm from each other and from the copy, which ours with its pool does not: at
    (8, 256, 14, 14) that alone made ours 1.24 times eager's time where alone each takes 0.55 ms. Hence the first call
    of a turn is not timed, unless it takes so long that the caches do not count. Its inputs are other ones.

    The index that calls get grows by one with every call, whoever makes it, so that no contender finds in the cache
    what the one before it has read. ``around(name)`` is entered for each of a contender's turns, outside of its time.
    """
    index = 0
    counts: dict[str, int] = {}
    settling: set[str] = set()
    for name, call in contenders.items():
        calls, spent = 0, 0.0
        while calls < 2 or spent < effort.warm_up:
            with around(name):
                latest = timer.time(call, index, 1)
            index, calls, spent = index + 1, calls + 1, spent + latest
            if calls >= 1000:
                break
        counts[name] = max(1, math.ceil(effort.batch / max(latest, 1e-7)))
        if latest <= effort.settle:
            settling.add(name)
    names, order = list(contenders), random.Random(0)
    turns: dict[str, list[float]] = {name: [] for name in names}
    collecting = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        total, rounds = 0.0, 0
        while rounds < effort.least_rounds or (total < effort.seconds and rounds < effort.most_rounds):
            for name in order.sample(names, len(names)):
                with around(name):
                    if name in settling:
                        total += timer.time(contenders[name], index, 1)
                        index += 1
                    taken = timer.time(contenders[name], index, counts[name])
                index += counts[name]
                turns[name].append(taken / counts[name])
                total += taken
            rounds += 1
    finally:
        if collecting:
            gc.enable()
    return {name: spread(values, counts[name]) for name, values in turns.items()}


def spread(values: list[float], calls_per_round: int = 1) -> Spread:
    """Median and quartiles of seconds a call."""
    if len(values) == 1:
        return Spread(values[0], values[0], values[0], 1, calls_per_round)
    lower, median, upper = statistics.quantiles(values, n=4, method="inclusive")
    return Spread(median, lower, upper, len(values), calls_per_round)
