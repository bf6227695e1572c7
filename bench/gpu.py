"""What is measured on a GPU alone: our backends beside each other, and work without the cost of launching it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace

import torch

import fastdl
from fastdl.ops import dispatch

from .records import OURS, SEPARATOR, is_ours
from .timing import Call, Effort, Spread, Timer, interleave

# Of one comparison: all contenders together, forward or forward and backward. Events resolve half a microsecond, so a
# turn is long enough for that to be nothing.
GPU = Effort(seconds=0.5, warm_up=0.02, batch=2e-3, least_rounds=7, most_rounds=200)
GPU_QUICK = replace(GPU, seconds=0.2, least_rounds=5)
# `python -m bench --device cuda` ends by itself within this many seconds: `make gpu-bench` has eight minutes for it and
# for the check of the GPU before it and the training steps behind it.
TIME_LIMIT = 350.0

# Above this size of a tensor a kernel takes longer than its launch, and both ways of timing say the same.
GRAPH_BYTES = 16 << 20
# How many calls one graph holds: enough to go through the inputs and to make its own start not count.
MOST_CALLS_IN_A_GRAPH = 64


def own_backends(served_by: str) -> dict[str, str]:
    """Contenders that are ours on another backend than ``auto`` takes: ``ours/cuda`` -> ``cuda``."""
    if dispatch.requested() != "auto":
        return {}
    names = [name for name in dispatch.PREFERENCES["cuda"] if name != served_by and dispatch.status(name).available]
    return {f"{OURS}{SEPARATOR}{name}": name for name in names}


def context_of(contender: str) -> AbstractContextManager[None]:
    """What has to hold while a contender runs: for one of `own_backends` its backend."""
    backend = contender.partition(SEPARATOR)[2]
    return fastdl.use_backend(backend) if is_ours(contender) and backend else nullcontext()


def peak_bytes(contender: str, call: Call, device: torch.device) -> int:
    """The most that one call holds of the GPU's memory at a time, beyond what was held before it.

    Called twice: the first call may take workspaces that a library then keeps.
    """
    with context_of(contender):
        call(0)
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        call(1)
        torch.cuda.synchronize(device)
        return int(torch.cuda.max_memory_allocated(device)) - before


def replayed(call: Call, sets: int) -> tuple[Call, int]:
    """The call captured into a CUDA graph that does it several times, and how many; one after the other on each input.

    Raises RuntimeError for work that cannot be captured, such as work that waits for the GPU.
    """
    count = min(MOST_CALLS_IN_A_GRAPH, max(sets, 16))
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):  # capturing needs every allocation and compilation to have happened before
        for index in range(3):
            call(index)
    torch.cuda.current_stream().wait_stream(side)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for index in range(count):
            call(index)

    def replay(index: int) -> None:
        graph.replay()

    return replay, count


def time_replayed(
    calls: Mapping[str, Call],
    sets: int,
    timer: Timer,
    effort: Effort,
    capture: Callable[[Call, int], tuple[Call, int]] = replayed,
) -> tuple[dict[str, Spread], dict[str, str]]:
    """Seconds a call of each contender within a CUDA graph, and the reasons for those that cannot be captured."""
    captured: dict[str, Call] = {}
    failed: dict[str, str] = {}
    count = 1
    for name, call in calls.items():
        try:
            with context_of(name):
                captured[name], count = capture(call, sets)
        except RuntimeError as error:
            failed[name] = f"not captured: {str(error).strip().partition(chr(10))[0][:160]}"
    if not captured:
        return {}, failed
    times = interleave(captured, timer, replace(effort, batch=0.0))
    return {name: spread.of_one(count) for name, spread in times.items()}, failed
