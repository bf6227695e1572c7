"""From torch's profiler events to accounts: which time is an op's, which another operator's, and which nobody's."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from torch.autograd import DeviceType  # type: ignore[attr-defined]

from fastdl.ops.annotation import BACKWARD
from fastdl.profile.annotations import CALL, REFERENCE, Call
from fastdl.profile.records import Accounts, Other, Record

MEMORY = "[memory]"
BACKWARD_NODE = 1
"""``at::RecordScope::BACKWARD_FUNCTION``."""
ENGINE = "autograd::engine::evaluate_function: "
ENGINE_LABEL = "autograd engine"
AROUND_LABEL = "fastdl around its kernels"
"""Autograd Functions, and what a registered op does before its kernel."""
AROUND = ("EagerBackward", "TransformedBackward", "Transformed", "_Eager", "fastdl::")
UNLINKED = "kernels that no operator launched"


def account(
    events: Iterable[Any], calls: Mapping[int, Call], *, wall_seconds: float, device: str, memory: bool = False
) -> Accounts:
    """Takes the events of ``torch.profiler`` apart.

    Args:
        events: `FunctionEvent`s, each with its children.
        calls: the calls that were announced, by the number that their ranges carry.
        wall_seconds: between beginning and end.
        device: ``cuda`` counts the time of kernels there, ``cpu`` that of the calls.
        memory: whether the events tell of memory.
    """
    events = list(events)
    accountant = _Accountant(calls, device == "cuda", memory, events)
    for event in events:
        if event.device_type == DeviceType.CPU and event.cpu_parent is None and event.name != MEMORY:
            accountant.visit(event)
    accountant.add_backwards_of_reference()
    others = [Other(name, *values) for name, values in accountant.others.items()]
    if accountant.on_gpu:
        unlinked = _seconds_on_gpu(events) - accountant.seconds_on_gpu
        if unlinked > 1e-9:
            others.append(Other(UNLINKED, 1, unlinked))
    others.sort(key=lambda other: -other.seconds)
    starts = sorted(accountant.found, key=lambda pair: pair[0])
    return Accounts(tuple(record for _, record in starts), tuple(others), wall_seconds, device)


class _Accountant:
    """Walks the trees of events, and adds each second to the outermost op that it lies in, or to its operator."""

    def __init__(self, calls: Mapping[int, Call], on_gpu: bool, memory: bool, events: list[Any]) -> None:
        self.calls = calls
        self.on_gpu = on_gpu
        self.memory = memory
        self.around = {"".join(word.title() for word in call.operator.split("_")) for call in calls.values()}
        self.found: list[tuple[float, Record]] = []
        self.others: dict[str, tuple[int, float, int]] = {}
        self.seconds_on_gpu = 0.0
        self.forwards = _reference_nodes(events, calls)
        self.backwards: dict[int, list[Any]] = {}

    def visit(self, event: Any, inside: bool = False) -> None:
        call = call_of(event, self.calls)
        if call is not None:
            self._add(call, [event], nested=inside)
        elif not inside:
            number = self._reference_forward_of(event)
            if number is not None:
                self.backwards.setdefault(number, []).append(event)
                return
            self._add_other(event)
        for child in event.cpu_children:
            self.visit(child, inside or call is not None)

    def _add(self, call: Call, events: list[Any], *, nested: bool) -> None:
        whole = sum(map(self._seconds, events))
        of_torch = sum(self._seconds(each) for event in events for each in _outermost_of_torch(event, call, self.calls))
        record = Record(
            call,
            whole,
            whole - of_torch,
            sum(event.cpu_time_total for event in events) * 1e-6,
            sum(map(launches, events)),
            sum(map(_allocated, events)) + call.pooled if self.memory else None,
            nested,
        )
        if not nested:
            self.seconds_on_gpu += sum(map(_device_seconds, events))
        self.found.append((events[0].time_range.start, record))

    def add_backwards_of_reference(self) -> None:
        """A record for each forward by the reference whose autograd nodes have run."""
        for number, nodes in self.backwards.items():
            call = self.calls[number]
            backward = Call(
                call.operator, BACKWARD, REFERENCE, call.shapes, call.dtypes, call.cost_of_backward
            )  # fmt: skip
            self._add(backward, nodes, nested=False)

    def _add_other(self, event: Any) -> None:
        on_gpu = _own_device_seconds(event)
        self.seconds_on_gpu += on_gpu
        if event.is_user_annotation:
            return  # what is in none of its operators is Python's
        seconds = on_gpu if self.on_gpu else event.self_cpu_time_total * 1e-6
        if self.on_gpu and not seconds:
            return
        name = event.name
        if name.startswith(ENGINE):
            name = ENGINE_LABEL
        elif name in self.around or name.startswith(AROUND):
            name = AROUND_LABEL
        calls, before, kernels = self.others.get(name, (0, 0.0, 0))
        self.others[name] = (calls + 1, before + seconds, kernels + _own_launches(event))

    def _seconds(self, event: Any) -> float:
        return _device_seconds(event) if self.on_gpu else event.cpu_time_total * 1e-6

    def _reference_forward_of(self, event: Any) -> int | None:
        """The number of the reference's forward that made the autograd node which runs here."""
        if event.sequence_nr < 0 or not (event.scope == BACKWARD_NODE or event.name.startswith(ENGINE)):
            return None
        nodes = self.forwards.get(event.fwd_thread, [])
        place = bisect_right(nodes, event.sequence_nr, key=lambda node: node[0]) - 1
        if place < 0 or event.sequence_nr >= nodes[place][1]:
            return None
        return nodes[place][2]


def call_of(event: Any, calls: Mapping[int, Call]) -> Call | None:
    """The call whose range an event is."""
    number = (event.kwinputs or {}).get(CALL)
    if number is None or number not in calls or calls[number].name != event.name:
        return None
    return calls[number]


def _reference_nodes(events: list[Any], calls: Mapping[int, Call]) -> dict[int, list[tuple[int, int, int]]]:
    """By thread, the autograd nodes that a reference's forward made there, from and up to, and that call's number."""
    found: dict[int, list[tuple[int, int, int]]] = {}
    for event in events:
        call = call_of(event, calls)
        if call is not None and call.nodes[1] > call.nodes[0]:
            found.setdefault(event.thread, []).append((*call.nodes, event.kwinputs[CALL]))
    return {thread: sorted(nodes) for thread, nodes in found.items()}


def _outermost_of_torch(event: Any, call: Call, calls: Mapping[int, Call]) -> Iterator[Any]:
    """Operators of torch's own in an op's range; the reference is made of them, and they are its own time."""
    if call.backend == REFERENCE:
        return
    for child in event.cpu_children:
        if child.name.startswith("aten::") or call_of(child, calls) is not None:
            yield child
        else:
            yield from _outermost_of_torch(child, call, calls)


def _device_seconds(event: Any) -> float:
    return float(event.device_time_total) * 1e-6


def _own_device_seconds(event: Any) -> float:
    return sum(kernel.duration for kernel in event.kernels) * 1e-6


def _seconds_on_gpu(events: list[Any]) -> float:
    """Of all kernels, copies and fills; ranges that are drawn along the GPU's time are none of these."""
    return sum(
        event.time_range.elapsed_us() * 1e-6
        for event in events
        if event.device_type != DeviceType.CPU and not event.is_user_annotation and event.name != MEMORY
    )


def launches(event: Any) -> int:
    """Kernels that were launched within an event."""
    return _own_launches(event) + sum(map(launches, event.cpu_children))


def _own_launches(event: Any) -> int:
    return sum(not kernel.name.startswith(("Memcpy", "Memset")) for kernel in event.kernels)


def _allocated(event: Any) -> int:
    return int(event.cpu_memory_usage) + int(event.device_memory_usage)
