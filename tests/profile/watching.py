"""The calls that an annotated block announces, without a profiler, and events that a test makes up."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch.autograd import DeviceType
from torch.autograd.profiler_util import FunctionEvent, Kernel

from fastdl.profile.annotations import ANNOTATOR, CALL, Call, annotated


def calls_of(function: Callable[[], object]) -> list[Call]:
    """What is announced while a function runs, in order."""
    with annotated():
        ANNOTATOR.calls = {}
        try:
            function()
            return list(ANNOTATOR.calls.values())
        finally:
            ANNOTATOR.calls = None


def event(
    name: str,
    start: float,
    end: float,
    *children: FunctionEvent,
    number: int | None = None,
    kernels: tuple[tuple[str, float], ...] = (),
    device_type: DeviceType = DeviceType.CPU,
    **more: Any,
) -> FunctionEvent:
    """An event from ``start`` to ``end`` microseconds; ``number`` is the call whose range it is."""
    kwinputs = {} if number is None else {CALL: number}
    made = FunctionEvent(
        0, name, more.pop("thread", 1), start, end, kwinputs=kwinputs, device_type=device_type, use_device="cuda",
        **more,
    )  # fmt: skip
    for child in children:
        made.append_cpu_child(child)
        child.set_cpu_parent(made)
    made.kernels = [Kernel(kernel, 0, duration) for kernel, duration in kernels]
    return made


def with_children(*roots: FunctionEvent) -> list[FunctionEvent]:
    """Roots and all below them, as the profiler lists them."""
    return [each for root in roots for each in (root, *with_children(*root.cpu_children))]
