"""Launching a kernel, or taking down what would be launched: for the list of what ships, and for tests."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastdl.kernels import tuned


class Launch(NamedTuple):
    """One launch: a kernel, how many programs, its arguments in order, and what is constant in its compilation.

    ``stages``: how many steps ahead a loop's loads are asked for.
    """

    kernel: Any
    programs: int
    arguments: tuple[Any, ...]
    constants: Mapping[str, Any]
    warps: int
    stages: int = 3


_taken_down: list[Launch] | None = None


def launch(kernel: Any, programs: int, *arguments: Any, warps: int, stages: int = 3, **constants: Any) -> None:
    """Launches ``programs`` programs on torch's current stream."""
    if _taken_down is not None:
        _taken_down.append(Launch(kernel, programs, arguments, constants, warps, stages))
        return
    kernel[(programs,)](*arguments, **constants, num_warps=warps, num_stages=stages)


@contextmanager
def taking_down() -> Iterator[list[Launch]]:
    """Within it nothing is launched, and what would be is appended to the list; tensors may be on ``meta``.

    Sizes that a user has stored do not count: what ships is the same on every machine.
    """
    global _taken_down
    _taken_down = []
    try:
        with tuned.shipped_only():
            yield _taken_down
    finally:
        _taken_down = None


def on_device(tensor: Tensor) -> AbstractContextManager[Any]:
    """Triton launches on the current device, which need not be the tensor's."""
    if not tensor.is_cuda or tensor.device.index == torch.cuda.current_device():
        return nullcontext()
    return torch.cuda.device(tensor.device)


def stride_of(parameter: Tensor | None) -> int:
    return 0 if parameter is None else parameter.stride(0)
