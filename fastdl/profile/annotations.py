"""Named ranges around the kernels of every op: ``fastdl::group_norm_forward[cpu]``, with what the call is of.

A range is torch's own `_RecordFunctionFast`, which Inductor puts around its kernels. Unlike ``record_function`` it
carries values into the trace, and costs 0.3 us, not 4 (torch 2.13, one thread of an AMD EPYC).
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch._C._profiler import _RecordFunctionFast

import fastdl
from fastdl.ops import annotation
from fastdl.ops.annotation import FORWARD
from fastdl.ops.dispatch import Implementation
from fastdl.profile.arguments import Arguments, backward_of, take_apart
from fastdl.profile.costs import Cost, cost_of

REFERENCE = "reference"
CALL = "call"
"""The key under which a range carries the number of its call."""

# The number that the next autograd node of this thread gets.
_next_node: Callable[[], int] = torch._C._autograd._get_sequence_nr


@dataclass
class Call:
    """One call of an op's kernel.

    Attributes:
        operator, direction, backend: as the range is named after them.
        shapes, dtypes: of each tensor that was given, by its name in the op's schema.
        cost: the least it must move and compute; None for tensors that a transform has wrapped.
        nodes: for a forward by the reference the numbers of the autograd nodes that it made, from and up to; its
            backward is theirs, and ``cost_of_backward`` the least for it.
        pooled: bytes that it took of the CPU's pool of outputs and had not given back at its end.
    """

    operator: str
    direction: str
    backend: str
    shapes: dict[str, tuple[int, ...]]
    dtypes: dict[str, str]
    cost: Cost | None
    nodes: tuple[int, int] = (0, 0)
    cost_of_backward: Cost | None = None
    pooled: int = 0

    @property
    def name(self) -> str:
        return f"fastdl::{self.operator}_{self.direction}[{self.backend}]"


class Annotator:
    """What `fastdl.ops.annotation.annotate` is while somebody looks on; counts who does, in any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._watching = 0
        self._nvtx = 0
        self._numbers = itertools.count()
        self.calls: dict[int, Call] | None = None
        self.memory = False

    def start(self, *, nvtx: bool) -> None:
        with self._lock:
            self._watching += 1
            self._nvtx += nvtx
            annotation.annotate = self

    def stop(self, *, nvtx: bool) -> None:
        with self._lock:
            self._watching -= 1
            self._nvtx -= nvtx
            if not self._watching:
                annotation.annotate = None

    def __call__(
        self, op: Any, direction: str, kernels: Implementation | None, function: Callable[..., Any]
    ) -> Callable[..., Any]:
        def announced(*arguments: Any) -> Any:
            if torch._C._len_torch_dispatch_stack():
                return function(*arguments)  # fake tensors, or a graph that is being made: nothing runs
            given = take_apart(op, direction, arguments)
            call = describe(op.name, given, kernels)
            number, calls, memory = next(self._numbers), self.calls, self.memory
            if calls is not None:
                calls[number] = call
            plain = [tensor for tensor in given.tensors if tensor is not None] if call.cost is not None else []
            with (
                torch.cuda.nvtx.range(call.name) if self._nvtx else nullcontext(),
                _RecordFunctionFast(call.name, plain, values_of(call, number)),
            ):
                first, pooled = _next_node(), fastdl.cpu_pool().in_use if memory else 0
                result = function(*arguments)
                if memory:
                    call.pooled = fastdl.cpu_pool().in_use - pooled
                if kernels is None and direction == FORWARD:
                    call.nodes = (first, _next_node())
            if call.cost is not None and call.nodes[1] > call.nodes[0]:
                call.cost_of_backward = cost_of(op.name, backward_of(op, given, result))
            return result

        return announced


def describe(operator: str, given: Arguments, kernels: Implementation | None) -> Call:
    """What a call is of. ``kernels`` that hand on to others by what was measured are told as those."""
    present = [(name, t) for name, t in zip(given.names, given.tensors, strict=True) if isinstance(t, Tensor)]
    if kernels is not None and kernels.serving is not None:
        kernels = kernels.serving(given.tensors[0] if given.direction == FORWARD else present[0][1])
    wrapped = any(torch._C._functorch.is_functorch_wrapped_tensor(tensor) for _, tensor in present)
    return Call(
        operator,
        given.direction,
        REFERENCE if kernels is None else kernels.backend,
        {name: tuple(tensor.shape) for name, tensor in present},
        {name: str(tensor.dtype).removeprefix("torch.") for name, tensor in present},
        None if wrapped else cost_of(operator, given),
    )


def values_of(call: Call, number: int) -> dict[str, Any]:
    """What the range carries into the trace, where a text with quotes in it would be lost."""
    shapes = {name: "x".join(map(str, shape)) for name, shape in call.shapes.items()}
    values: dict[str, Any] = {
        CALL: number,
        "backend": call.backend,
        "shapes": ", ".join(f"{name} {shape}" for name, shape in shapes.items()),
        "dtypes": ", ".join(f"{name} {dtype}" for name, dtype in call.dtypes.items()),
    }
    if call.cost is not None:
        values["least_bytes"] = call.cost.bytes
        if call.cost.operations is not None:
            values["operations"] = call.cost.operations
    return values


ANNOTATOR = Annotator()


@contextmanager
def annotated(*, nvtx: bool = False) -> Iterator[None]:
    """Puts a named range around every op's forward and backward, for a profiler of your own.

    ``torch.profiler`` shows them in its tables and traces, with ``record_shapes=True`` with their values. Blocks nest,
    and hold for every thread of the process.

    Args:
        nvtx: the ranges as NVTX ranges as well, which Nsight Systems shows; needs a GPU.

    Raises:
        ValueError: ``nvtx`` where torch has no CUDA.
    """
    check_nvtx(nvtx)
    ANNOTATOR.start(nvtx=nvtx)
    try:
        yield
    finally:
        ANNOTATOR.stop(nvtx=nvtx)


def check_nvtx(nvtx: bool) -> None:
    if nvtx and not torch.cuda.is_available():
        raise ValueError("nvtx must be False where torch sees no CUDA GPU; got True")
