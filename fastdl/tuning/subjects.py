"""What a benchmark's case launches: the plans behind a call, the kernels that each shapes, and its pass."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

import fastdl
from fastdl.bench.cases import Benchmark, Case
from fastdl.bench.harness import forward_backward_call, forward_call
from fastdl.bench.operands import Operands, make_operands
from fastdl.bench.summary import FORWARD, FORWARD_BACKWARD
from fastdl.bench.timing import Call
from fastdl.kernels import tuned
from fastdl.kernels.launch import taking_down
from fastdl.kernels.tuned import Sizes
from fastdl.ops import dispatch

from .candidates import all_neighbours


@dataclass(frozen=True)
class Plan:
    """Sizes to be tuned: a name and a bucket, the plan's own, the pass that they are used in, and its kernels there."""

    name: str
    key: str
    default: Sizes
    pass_name: str
    kernels: tuple[str, ...]
    candidates: tuple[Sizes, ...]


def passes(benchmark: Benchmark, case: Case) -> tuple[str, ...]:
    """The passes of a case: forward, and forward with backward where there is one."""
    return (FORWARD,) if benchmark.only_forward(case) else (FORWARD, FORWARD_BACKWARD)


def call_of(benchmark: Benchmark, case: Case, operands: Operands, pass_name: str) -> Call:
    """One pass of ours on Triton's kernels, with gradients or without, as the pass has it."""
    make = forward_call if pass_name == FORWARD else forward_backward_call
    inner = make(benchmark.ours(case), operands)

    def call(index: int) -> object:
        with fastdl.use_backend("triton"), torch.set_grad_enabled(pass_name == FORWARD_BACKWARD):
            return inner(index)

    return call


def plans_of(benchmark: Benchmark, case: Case, operands: Operands) -> list[Plan]:
    """Every plan that the case asks for, each under the first pass that it is in; those of no effect are left out."""
    found: dict[tuple[str, str], Plan] = {}
    for pass_name in passes(benchmark, case):
        call = call_of(benchmark, case, operands, pass_name)
        with tuned.asking() as asked:
            own = launches(call)
        for one in dict.fromkeys(asked):
            if (one.name, one.key) in found:
                continue
            kernels: dict[str, None] = {}
            candidates = []
            for sizes in all_neighbours(one.name, one.default):
                with tuned.trying(one.name, sizes, one.key):
                    changed = changes(own, launches(call))
                kernels |= dict.fromkeys(changed)
                candidates += [sizes] if changed else []
            if candidates:
                found[one.name, one.key] = Plan(
                    one.name, one.key, one.default, pass_name, tuple(kernels), tuple(candidates)
                )
    return list(found.values())


Description = tuple[Any, ...]


def launches(call: Call) -> list[tuple[str, Description]]:
    """What a call launches: each kernel's name, with how it is compiled and how many programs there are."""
    with taking_down() as taken:
        call(0)
    return [
        (one.kernel.__name__, (one.programs, one.warps, one.stages, *sorted(one.constants.items()))) for one in taken
    ]


def changes(before: Sequence[tuple[str, Description]], after: Sequence[tuple[str, Description]]) -> list[str]:
    """The names of the kernels whose launches differ."""
    if len(before) != len(after):
        return [name for name, _ in after]
    return [name for (name, one), (_, other) in zip(before, after, strict=True) if one != other]


def real_operands(benchmark: Benchmark, case: Case, device: torch.device, sets: int) -> Operands:
    return make_operands(benchmark, case, device, sets)


def imagined_operands(benchmark: Benchmark, case: Case) -> Operands:
    """The case's tensors without memory, of which plans see shapes, strides and dtypes."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        made = make_operands(benchmark, case, torch.device("cpu"), 1)

    def without_memory(tensor: Tensor) -> Tensor:
        empty = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta")
        return empty.requires_grad_(tensor.requires_grad)

    return Operands(
        [without_memory(x) for x in made.inputs],
        [without_memory(x) for x in made.grads],
        tuple(without_memory(x) for x in made.parameters),
    )


@contextmanager
def imagined_gpu() -> Iterator[None]:
    """Within it Triton's kernels serve tensors on ``meta``, so that plans can be listed without a GPU: as on an H100.

    Nothing may be launched in it but under `fastdl.kernels.launch.taking_down`.
    """
    rows = dispatch.BACKENDS
    caches: tuple[Callable[..., Any], ...] = (dispatch.choose, dispatch.status, dispatch.implementation)
    row = rows["triton"]
    there = lambda: dispatch.BackendStatus(True)  # noqa: E731
    rows["triton"] = replace(row, probe=there, devices=row.devices | {"meta"})
    for cached in caches:
        cached.cache_clear()  # type: ignore[attr-defined]
    try:
        yield
    finally:
        rows["triton"] = row
        for cached in caches:
            cached.cache_clear()  # type: ignore[attr-defined]
