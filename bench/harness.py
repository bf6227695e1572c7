"""One case: its contenders checked, its passes timed, its saved bytes counted."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

import fastdl
from fastdl.ops import dispatch

from . import clocks
from .cases import DTYPES, Benchmark, Case, Function
from .ceilings import copy_call
from .correctness import Judge, copies, outputs_of
from .counting import Work, saved_bytes
from .gpu import GRAPH_BYTES, context_of, own_backends, peak_bytes, time_replayed
from .operands import Operands, count_sets, make_operands
from .records import GRAPH, CaseRecord, Measurement
from .summary import FORWARD, FORWARD_BACKWARD
from .timing import FULL, Call, Effort, Timer, interleave, timer_for

POOL_THRESHOLD_BYTES = 1 << 20
COPY = "copy"
AUTOTUNED = "compile max-autotune"


@dataclass(frozen=True)
class Settings:
    """How cases are measured.

    ``pools`` are the states of the CPU output pool, ``(None,)`` where there is no pool; ``autotune`` adds
    `AUTOTUNED`.
    """

    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    effort: Effort = FULL
    compile: bool = True
    autotune: bool = False
    pools: tuple[str | None, ...] = (None,)
    matrix_rates: dict[str, float] = field(default_factory=dict)


def measure(
    benchmark: Benchmark,
    case: Case,
    settings: Settings,
    say: Callable[[str], None] = lambda text: None,
    timer: Timer | None = None,
) -> CaseRecord:
    """Everything that is measured of one case; ``say`` is told what is going on."""
    device = settings.device
    timer = timer or timer_for(device)
    sets = count_sets(case.tensor_bytes, device, torch.get_num_threads())
    operands = make_operands(benchmark, case, device, sets)
    functions, rejected = _contenders(benchmark, case, operands, settings, say)
    only_forward = benchmark.only_forward(case)
    lacking = {peer.name for peer in benchmark.peers if peer.only_forward and device.type in peer.devices}
    both_ways = {} if only_forward else {n: function for n, function in functions.items() if n not in lacking}
    say("counting bytes")
    saved = {}
    for name, function in both_ways.items():
        with context_of(name):
            saved[name] = saved_bytes(function, operands.inputs[0], operands.parameters)
    peaks, before = {}, {}
    if device.type == "cuda":
        with torch.set_grad_enabled(not only_forward):
            calls = _calls(FORWARD if only_forward else FORWARD_BACKWARD, both_ways or functions, operands)
            peaks = {name: peak_bytes(name, call, device) for name, call in calls.items()}
        before = clocks.read(device)
    measurements = []
    for pool in settings.pools:
        if pool == "off" and len(settings.pools) > 1 and case.tensor_bytes < POOL_THRESHOLD_BYTES:
            continue  # no output of this case comes from the pool
        with pool_state(pool):
            for pass_name in (FORWARD,) if only_forward else (FORWARD, FORWARD_BACKWARD):
                contenders = functions if pass_name == FORWARD else both_ways
                say(f"{pass_name}, pool {pool}" if pool else pass_name)
                work = benchmark.forward_work(case)
                if pass_name == FORWARD_BACKWARD:
                    work = work + benchmark.backward_work(case)
                measured = _time_pass(benchmark, pass_name, pool, contenders, operands, work, case, settings, timer)
                measurements.append(measured)
                if device.type == "cuda" and case.tensor_bytes <= GRAPH_BYTES:
                    say(f"{pass_name}, from a CUDA graph")
                    replayed, failed = _time_graph(measured, contenders, operands, settings, timer)
                    measurements += [replayed] if replayed else []
                    rejected |= {f"{name} ({pass_name} in a graph)": reason for name, reason in failed.items()}
    states = {"before": before, "after": clocks.read(device)} if before else {}
    backend = served_by(benchmark, case, device)
    return CaseRecord(case, backend, sets, saved, rejected, tuple(measurements), peaks, states)


def served_by(benchmark: Benchmark, case: Case, device: torch.device) -> str:
    """The backend behind ours."""
    return dispatch.choose(benchmark.serving_op, dispatch.requested(), device.type, DTYPES[case.dtype])


def pool_state(pool: str | None) -> AbstractContextManager[None]:
    return _PoolState(pool)


class _PoolState(AbstractContextManager[None]):
    """Switches the CPU output pool for a block, and back after it."""

    def __init__(self, mode: str | None) -> None:
        self.mode = mode

    def __enter__(self) -> None:
        if self.mode is not None:
            self.before = fastdl.cpu_pool().enabled
            fastdl.cpu_pool(self.mode)

    def __exit__(self, *error: object) -> None:
        if self.mode is not None:
            fastdl.cpu_pool("on" if self.before else "off")


def _contenders(
    benchmark: Benchmark, case: Case, operands: Operands, settings: Settings, say: Callable[[str], None]
) -> tuple[dict[str, Function], dict[str, str]]:
    """The functions to time by name, ours and eager first, and the reasons for those that are not."""
    candidates: dict[str, Callable[[], Function | None]] = {
        "ours": lambda: benchmark.ours(case),
        "eager": lambda: benchmark.eager(case),
    }
    if settings.device.type == "cuda":
        for name in own_backends(served_by(benchmark, case, settings.device)):
            candidates[name] = lambda: benchmark.ours(case)
    if settings.compile:
        candidates["compile"] = lambda: compiled(benchmark.eager(case))
    if settings.compile and settings.autotune:
        candidates[AUTOTUNED] = lambda: autotuned(benchmark.eager(case))
    only_forward = set()
    for peer in benchmark.peers:
        if peer.available(settings.device.type) and (settings.compile or not peer.compiles):
            candidates[peer.name] = lambda peer=peer: peer.load()(case)  # type: ignore[misc]
            only_forward |= {peer.name} if peer.only_forward else set()
    say("checking against float64")
    judge = (benchmark.judge or Judge)(benchmark, case, operands)
    functions: dict[str, Function] = {}
    rejected: dict[str, str] = {}
    for name, load in candidates.items():
        say(f"checking {name}")
        try:
            function = load()
            if function is None:
                continue
            with context_of(name):
                complaint = judge.complaint(function, only_forward=name in only_forward)
            if complaint is None and name in ("compile", AUTOTUNED):
                with torch.no_grad():  # the graph for inference is another one: compile it now, not while timing
                    function(operands.inputs[0], *copies(operands.parameters))
        except Exception as error:  # a contender that cannot run is reported, and the others are measured
            complaint = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0][:200]}"
            function = None
        if complaint is None and function is not None:
            functions[name] = function
        else:
            rejected[name] = complaint or ""
    return functions, rejected


def compiled(function: Function) -> Function:
    """``torch.compile`` in its default mode, for these shapes alone; a graph break is an error, not a slow success."""
    # Every case compiles the same code object: past the limit of recompilations Dynamo would quietly run it eagerly.
    torch._dynamo.reset()
    return torch.compile(function, dynamic=False, fullgraph=True)


def autotuned(function: Function) -> Function:
    """The same with every kernel chosen by timing it; called behind `compiled`, whose fresh start it shares.

    Without the CUDA graphs that the mode brings: they copy inputs that change their place, as all do here, and every
    contender alike is replayed from a graph besides. On the CPU the mode changes matrix products alone.
    """
    return torch.compile(function, dynamic=False, fullgraph=True, mode="max-autotune-no-cudagraphs")


def _time_pass(
    benchmark: Benchmark,
    pass_name: str,
    pool: str | None,
    functions: dict[str, Function],
    operands: Operands,
    work: Work,
    case: Case,
    settings: Settings,
    timer: Timer,
) -> Measurement:
    calls = _calls(pass_name, functions, operands)
    calls[COPY] = copy_call(operands.inputs)
    calls |= _calls(pass_name, {name: part(case) for name, part in benchmark.parts.items()}, operands)
    with torch.set_grad_enabled(pass_name == FORWARD_BACKWARD):
        times = interleave(calls, timer, settings.effort, context_of)
    bandwidth = 2 * case.tensor_bytes / times.pop(COPY).median
    floor = work.floor(bandwidth, settings.matrix_rates.get(case.dtype, 0.0))
    parts = {name: times.pop(name) for name in benchmark.parts}
    return Measurement(pass_name, pool, times, work.bytes, bandwidth, floor, parts)


def _time_graph(
    measured: Measurement, functions: dict[str, Function], operands: Operands, settings: Settings, timer: Timer
) -> tuple[Measurement | None, dict[str, str]]:
    """The same pass replayed from CUDA graphs, with the same floor; and why some contenders are missing from it."""
    calls = _calls(measured.pass_name, functions, operands)
    with torch.set_grad_enabled(measured.pass_name == FORWARD_BACKWARD):
        times, failed = time_replayed(calls, len(operands.inputs), timer, settings.effort)
    return (replace(measured, pool=GRAPH, times=times) if "ours" in times else None), failed


def _calls(pass_name: str, functions: dict[str, Function], operands: Operands) -> dict[str, Call]:
    make = forward_call if pass_name == FORWARD else forward_backward_call
    return {name: make(function, operands) for name, function in functions.items()}


def forward_call(function: Function, operands: Operands) -> Call:
    """The forward pass alone. It is timed with gradients switched off, as in inference."""
    inputs, parameters = operands.inputs, operands.parameters
    sets = len(inputs)

    def call(index: int) -> object:
        return function(inputs[index % sets], *parameters)

    return call


def forward_backward_call(function: Function, operands: Operands) -> Call:
    """Forward, then the gradients of the input and of every parameter that has one; a part of the work may use few."""
    inputs, grads, parameters = operands.inputs, operands.grads, operands.parameters
    leaves, sets = operands.differentiable, len(inputs)

    def call(index: int) -> tuple[Tensor, ...]:
        position = index % sets
        input = inputs[position]
        outputs = outputs_of(function(input, *parameters))
        return torch.autograd.grad(outputs, (input, *leaves), [grads[position]] * len(outputs), allow_unused=True)

    return call
