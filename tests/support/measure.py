"""What an op costs beside its result: tensors saved for backward, copies made on the way."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

# An op that makes a copy of a tensor, whatever the route by which it gets there.
COPYING = ("aten::copy_", "aten::clone", "aten::_to_copy", "aten::contiguous")


def saved_bytes(run: Callable[[], Tensor], parameters: tuple[Tensor, ...] = ()) -> int:
    """Bytes that autograd keeps for the backward of ``run()``, each storage once, without those of ``parameters``.

    A tensor that is an argument of the call counts too: eager keeps it, and ours does.
    """
    storages: dict[int, int] = {}
    kept: list[Tensor] = []
    known = {parameter.untyped_storage().data_ptr() for parameter in parameters}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            storages[storage.data_ptr()] = max(
                storages.get(storage.data_ptr(), 0), tensor.numel() * tensor.element_size()
            )
        kept.append(tensor)  # an address is its storage's only while the storage lives
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = run()
    assert output.grad_fn is not None
    return sum(storages.values())


def count_operators(run: Callable[[], Any]) -> dict[str, int]:
    """How often each torch op ran under ``run()``, those that C++ code calls and those of backward threads included."""
    with profile(activities=[ProfilerActivity.CPU], acc_events=True) as profiler:
        run()
    return {event.key: event.count for event in profiler.key_averages()}


def copies(counts: dict[str, int]) -> dict[str, int]:
    return {name: count for name, count in counts.items() if name in COPYING}
