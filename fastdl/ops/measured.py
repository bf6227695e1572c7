"""What ``auto`` prefers: tables of measurements by device, dtype, layout and size.

The first table is the user's own, which `fastdl tune --backends` has measured on this machine (`fastdl.tuning.store`),
on a GPU and on the CPU. The second ships, `measured_choices.CHOICES`, which a benchmark writes, for GPUs by their
compute capability. Where both say nothing, the order of `dispatch.PREFERENCES` holds.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache

import torch
from torch import Tensor

from fastdl.ops.measured_choices import CHOICES

# Bytes of the input up to which a size is of that class. Launches decide the small ones; what is medium fits into the
# second-level cache of an A100 or H100 (40 and 50 MB) together with its output; what is large streams from memory.
SIZE_CLASSES = (("small", 1 << 20), ("medium", 16 << 20))
LARGEST = "large"

# What stands for the compute capability in rows of the CPU.
CPU = "cpu"
Table = Mapping[str, Mapping[str, str]]
"""Op -> row of `key` -> backend."""


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
    rows = {**CHOICES.get(op, {}), **own_choices("cuda").get(op, {})}
    return frozenset(backend for row, backend in rows.items() if row.startswith(beginnings))


def measured_backends_on_cpu(op: str, dtype: torch.dtype) -> frozenset[str]:
    """The same for the CPU, of which only the user's own table tells."""
    beginning = f"{CPU} {name(dtype)} "
    return frozenset(backend for row, backend in own_choices(CPU).get(op, {}).items() if row.startswith(beginning))


@cache
def own_choices(device: str) -> Table:
    """The user's own table for the devices of a kind, ``cpu`` or ``cuda``, read once a process."""
    if device in _trial:
        return _trial[device]
    from fastdl.tuning import store

    return store.backends_of(store.device_of(device))


_trial: dict[str, Table] = {}


@contextmanager
def assuming(device: str, table: Table) -> Iterator[None]:
    """Within it, in all threads, this is the user's own table for the devices of a kind; only `own_choices` is told.

    `fastdl.ops.dispatch.assuming_choices` is what makes calls follow it.
    """
    _trial[device] = table
    forget()
    try:
        yield
    finally:
        del _trial[device]
        forget()


def forget() -> None:
    """The user's own tables are read again: after they have changed."""
    own_choices.cache_clear()
    _fastest.cache_clear()


def fastest(op: str, input: Tensor, layout: str) -> str | None:
    """The backend that was measured fastest for this input, whose layout has this name, on its GPU or the CPU.

    None where nothing was measured.
    """
    capability = _capability_of(input.device.index)
    return _fastest(op, capability, input.dtype, layout, size_class(input.numel() * input.element_size()))


@cache
def _fastest(op: str, capability: str, dtype: torch.dtype, layout: str, size: str) -> str | None:
    row = key(capability, name(dtype), layout, size)
    return own_choices(CPU if capability == CPU else "cuda").get(op, {}).get(row) or CHOICES.get(op, {}).get(row)


@cache
def _capability_of(device: int | None) -> str:
    """Of a tensor's device by its index, which the CPU has not."""
    return CPU if device is None else capability_text(torch.cuda.get_device_capability(device))


def name(dtype: torch.dtype) -> str:
    """``float32`` for ``torch.float32``."""
    return str(dtype).removeprefix("torch.")
