"""What ``auto`` prefers on a GPU: a table of measurements by compute capability, dtype, layout and size.

The table is `measured_choices.CHOICES`, which a benchmark writes. Where it says nothing, the order of
`dispatch.PREFERENCES` holds.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from fastdl.ops.measured_choices import CHOICES

# Bytes of the input up to which a size is of that class. Launches decide the small ones; what is medium fits into the
# second-level cache of an A100 or H100 (40 and 50 MB) together with its output; what is large streams from memory.
SIZE_CLASSES = (("small", 1 << 20), ("medium", 16 << 20))
LARGEST = "large"


def size_class(size_in_bytes: int) -> str:
    """``small``, ``medium`` or ``large``."""
    return next((name for name, most in SIZE_CLASSES if size_in_bytes <= most), LARGEST)


def key(capability: str, dtype: str, layout: str, size: str) -> str:
    """A row's name, such as ``9.0 bfloat16 channels_last large``."""
    return f"{capability} {dtype} {layout} {size}"


def capability_text(capability: tuple[int, int]) -> str:
    """``9.0`` for (9, 0)."""
    return f"{capability[0]}.{capability[1]}"


@cache
def capabilities() -> tuple[str, ...]:
    """Of the visible GPUs, each once."""
    found = {torch.cuda.get_device_capability(index) for index in range(torch.cuda.device_count())}
    return tuple(capability_text(capability) for capability in sorted(found))


def measured_backends(op: str, dtype: torch.dtype) -> frozenset[str]:
    """The backends that some measurement on one of the GPUs at hand found fastest for ``op`` in ``dtype``."""
    beginnings = tuple(f"{capability} {name(dtype)} " for capability in capabilities())
    return frozenset(backend for row, backend in CHOICES.get(op, {}).items() if row.startswith(beginnings))


def fastest(op: str, input: Tensor, layout: str) -> str | None:
    """The backend that was measured fastest for this input, whose layout has this name, on its device.

    None where nothing was measured.
    """
    capability = _capability_of(input.device.index)
    return _fastest(op, capability, input.dtype, layout, size_class(input.numel() * input.element_size()))


@cache
def _fastest(op: str, capability: str, dtype: torch.dtype, layout: str, size: str) -> str | None:
    return CHOICES.get(op, {}).get(key(capability, name(dtype), layout, size))


@cache
def _capability_of(device: int) -> str:
    return capability_text(torch.cuda.get_device_capability(device))


def name(dtype: torch.dtype) -> str:
    """``float32`` for ``torch.float32``."""
    return str(dtype).removeprefix("torch.")
