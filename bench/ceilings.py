"""The machine's own limits, measured in the run that they are compared with."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from .timing import Effort, Timer, interleave

MEMORY_COPY_BYTES = 256 << 20
SQUARE = {"cpu": 1024, "cuda": 8192}
SHORT = Effort(seconds=0.4, warm_up=0.02, least_rounds=5)


def copy_call(sources: list[Tensor]) -> Callable[[int], object]:
    """Copies one source after the other into one destination that has been written before: no new page, no allocation.

    The fastest way to read a tensor and write one of its size, and so what a forward pass is measured against.
    """
    detached = [source.detach() for source in sources]
    destination = torch.empty_like(detached[0]).copy_(detached[0])

    def copy(index: int) -> None:
        destination.copy_(detached[index % len(detached)])

    return copy


def memory_copy_bandwidth(
    device: torch.device, timer: Timer, size: int = MEMORY_COPY_BYTES, effort: Effort = SHORT
) -> float:
    """Bytes/s, read and written, of copying ``size`` bytes from main memory."""
    source = torch.ones(size // 4, device=device)
    times = interleave({"copy": copy_call([source])}, timer, effort)
    return 2 * size / times["copy"].median


def matrix_rate(
    device: torch.device, dtype: torch.dtype, timer: Timer, size: int | None = None, effort: Effort = SHORT
) -> float:
    """Operations/s of torch's fastest product of two square matrices: the ceiling of ops that multiply.

    On the CPU a convolution over single positions does the same through another library. Which is faster depends on the
    processor, and on how much else runs on it.
    """
    n = size or SQUARE[device.type]
    left, right = (torch.randn(n, n, device=device).to(dtype) for _ in range(2))
    out = torch.empty_like(left)
    calls: dict[str, Callable[[int], object]] = {"mm": lambda index: torch.mm(left, right, out=out)}
    if device.type == "cpu":
        image = left.t().reshape(1, n, n, 1).contiguous(memory_format=torch.channels_last)
        kernel = right.t().reshape(n, n, 1, 1).contiguous(memory_format=torch.channels_last)
        calls["convolution"] = lambda index: F.conv2d(image, kernel)
    with torch.no_grad():
        times = interleave(calls, timer, effort)
    return 2 * n**3 / min(spread.median for spread in times.values())
