"""What was measured: a record for each call of an op, rows that add records up, and where the rest of the time went."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from fastdl.profile.annotations import Call
from fastdl.profile.limits import Limits


@dataclass(frozen=True)
class Record:
    """One call of an op's kernel, as the profiler saw it.

    Attributes:
        call: what it was of.
        seconds: from entering to leaving it: on a GPU of its kernels there, else on the CPU.
        self_seconds: the same without the operators of torch that it calls, such as copies and the vendor's
            convolutions.
        cpu_seconds: on the CPU in any case.
        launches: kernels that it launched on a GPU.
        allocated: bytes that it allocated and had not freed at its end; None where memory was not watched.
        nested: whether it is a part of another record's call, and its time of that one's.
    """

    call: Call
    seconds: float
    self_seconds: float
    cpu_seconds: float
    launches: int = 0
    allocated: int | None = None
    nested: bool = False


@dataclass(frozen=True)
class Row:
    """Records of the same op, direction and backend (and shapes, where rows are told apart by them), added up.

    ``bytes`` and ``operations`` are the least that all calls together had to move and compute, None where it was not
    counted for one of them; ``floor_seconds`` is what the machine takes for that, call by call.
    """

    operator: str
    direction: str
    backend: str
    shapes: tuple[tuple[str, tuple[int, ...]], ...]
    calls: int
    seconds: float
    self_seconds: float
    cpu_seconds: float
    launches: int
    allocated: int | None
    bytes: int | None
    operations: int | None
    floor_seconds: float | None

    @property
    def bandwidth(self) -> float | None:
        """Bytes/s that were moved, if none was moved twice."""
        return _rate(self.bytes, self.seconds)

    @property
    def operation_rate(self) -> float | None:
        """Operations/s of matrix products; None where there are none."""
        return _rate(self.operations, self.seconds) if self.operations else None

    @property
    def of_roofline(self) -> float | None:
        """The least time over the time taken: 1 on the roofline, more where caches serve what memory is counted for."""
        return None if self.floor_seconds is None or not self.seconds else self.floor_seconds / self.seconds


def _rate(amount: int | None, seconds: float) -> float | None:
    return None if amount is None or not seconds else amount / seconds


@dataclass(frozen=True)
class Other:
    """An operator of torch's outside of ours: its calls, and the seconds that it took without those it calls."""

    name: str
    calls: int
    seconds: float
    launches: int = 0


@dataclass(frozen=True)
class Accounts:
    """Where all the time went.

    Attributes:
        records: our ops', in the order of their beginning.
        others: operators of torch, those that took longest first.
        wall_seconds: from beginning to end.
        device: whose time the seconds are, ``cpu`` or ``cuda``.
    """

    records: tuple[Record, ...] = ()
    others: tuple[Other, ...] = ()
    wall_seconds: float = 0.0
    device: str = "cpu"

    @property
    def seconds_of_ops(self) -> float:
        return sum(record.seconds for record in self.records if not record.nested)

    @property
    def seconds_of_others(self) -> float:
        return sum(other.seconds for other in self.others)

    @property
    def whole(self) -> float:
        """What shares are of: the wall time; the sum of its parts where several threads or streams make that longer."""
        return max(self.wall_seconds, self.seconds_of_ops + self.seconds_of_others)

    @property
    def rest(self) -> float:
        """Seconds in no operator: Python and waiting on a CPU, nothing to do on a GPU."""
        return self.whole - self.seconds_of_ops - self.seconds_of_others


def add_up(records: Iterable[Record], limits: Limits | None, *, by_shape: bool = False) -> list[Row]:
    """Rows of the records, those that took longest first; ``limits`` are the machine's, None where not measured."""
    groups: dict[Any, list[Record]] = {}
    for record in records:
        groups.setdefault(_key(record.call, by_shape), []).append(record)
    rows = [_row(group, limits, by_shape) for group in groups.values()]
    return sorted(rows, key=lambda row: -row.seconds)


def _key(call: Call, by_shape: bool) -> Any:
    name = (call.operator, call.direction, call.backend)
    return (*name, tuple(call.shapes.items()), tuple(call.dtypes.items())) if by_shape else name


def _row(group: Sequence[Record], limits: Limits | None, by_shape: bool) -> Row:
    call = group[0].call
    costs = [record.call.cost for record in group]

    def total(of: Callable[[Any], int | float | None], values: Sequence[Any]) -> Any:
        amounts = [None if value is None else of(value) for value in values]
        return None if None in amounts else sum(amount for amount in amounts if amount is not None)

    floors = [None if limits is None else limits.floor(record.call) for record in group]
    return Row(
        call.operator,
        call.direction,
        call.backend,
        tuple(call.shapes.items()) if by_shape else (),
        len(group),
        sum(record.seconds for record in group),
        sum(record.self_seconds for record in group),
        sum(record.cpu_seconds for record in group),
        sum(record.launches for record in group),
        total(lambda record: record.allocated, group),
        total(lambda cost: cost.bytes, costs),
        total(lambda cost: cost.operations, costs),
        total(lambda floor: floor, floors),
    )
