"""What a test gives to a runner and gets from it; the file format is that of ``runtime/main.cpp``."""

import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

ORDERS = ("forward", "reversed", "random")


@dataclass(frozen=True)
class Input:
    """An array that the kernel reads. Its bytes are given as they lie: strides are the driver's own arguments.

    ``offset`` is how many bytes the pointer is away from a multiple of 256.
    """

    array: NDArray[Any]
    offset: int = 0


@dataclass(frozen=True)
class Output:
    """An array that the kernel writes. It holds NaN (all bits set) at first, and comes back with the result."""

    shape: Sequence[int]
    dtype: DTypeLike
    offset: int = 0


@dataclass(frozen=True)
class InOut:
    """An array with contents that comes back with the result."""

    array: NDArray[Any]
    offset: int = 0


Operand = NDArray[Any] | Input | Output | InOut | None


@dataclass(frozen=True)
class Machine:
    """The GPU that ``machine()`` describes to a kernel's launcher. Below capability 90 there are no clusters."""

    multiprocessors: int = 4
    shared_bytes: int = 227 * 1024
    capability: int = 90


@dataclass(frozen=True)
class Case:
    """One call of a driver's case: its arrays and numbers by name. A bool counts as an integer."""

    name: str
    arrays: Mapping[str, Operand] = field(default_factory=dict)
    scalars: Mapping[str, int | float] = field(default_factory=dict)
    machine: Machine = Machine()
    # Processor time, so that a loaded machine fails no case.
    seconds: int = 60


class SimtError(AssertionError):
    """A case failed; the message is the runtime's or the sanitizer's report."""


@dataclass
class Result:
    """What became of a case. Arrays, reports and kernels are empty if it failed."""

    case: Case
    failure: str | None
    arrays: dict[str, NDArray[Any]]
    reports: dict[str, int]
    kernels: list[str]

    @property
    def kind(self) -> str | None:
        """The kind of failure.

        ``race``, ``out of bounds``, ``misaligned``, ``deadlock``, ``divergent barrier``, ``wrong mask``, ``mbarrier``,
        ``unfinished work``, ``timeout`` and others of the runtime's own, or ``address`` and ``undefined`` for the two
        sanitizers; None if the case went through.
        """
        if self.failure is None:
            return None
        if "ERROR: AddressSanitizer" in self.failure:
            return "address"
        if ": runtime error: " in self.failure:
            return "undefined"
        return self.failure.split(":", 1)[0]

    def check(self) -> None:
        """Raise SimtError if the case failed."""
        if self.failure is not None:
            raise SimtError(f"{self.case.name} {dict(self.case.scalars)}\n{self.failure}")


def encode(cases: Sequence[Case], order: str, seed: int) -> bytes:
    """The file that a runner reads. Raises ValueError for an order that it does not know."""
    if order not in ORDERS:
        raise ValueError(f"order must be one of {', '.join(ORDERS)}; got {order!r}")
    parts: list[bytes] = []
    for case in cases:
        machine = case.machine
        numbers = (machine.multiprocessors, machine.shared_bytes, machine.capability)
        parts += [_text(case.name), struct.pack("<6q", ORDERS.index(order), seed, case.seconds, *numbers)]
        integers = {name: value for name, value in case.scalars.items() if not isinstance(value, float)}
        reals = {name: value for name, value in case.scalars.items() if isinstance(value, float)}
        parts.append(struct.pack("<q", len(integers)))
        parts += [_text(name) + struct.pack("<q", value) for name, value in integers.items()]
        parts.append(struct.pack("<q", len(reals)))
        parts += [_text(name) + struct.pack("<d", value) for name, value in reals.items()]
        parts.append(struct.pack("<q", len(case.arrays)))
        for name, operand in case.arrays.items():
            contents = b"" if operand is None or isinstance(operand, Output) else _array(operand).tobytes()
            flags = (operand is not None) | isinstance(operand, (Output, InOut)) << 1
            offset = getattr(operand, "offset", 0)
            parts += [_text(name), struct.pack("<3q", _byte_count(operand), offset, flags), _text(contents)]
    return b"".join(parts)


def decode(data: bytes, cases: Sequence[Case]) -> list[Result]:
    """The results of ``cases`` from the file that a runner wrote; fewer than asked for if it ended early."""
    results: list[Result] = []
    reader = _Reader(data)
    for case in cases:
        if reader.at_end():
            break
        fine = reader.integer() == 1
        message = reader.text().decode(errors="replace")
        produced = _Reader(reader.text())
        result = Result(case, None if fine else message or "the case ended without a report", {}, {}, [])
        if fine:
            result.reports = {produced.text().decode(): produced.integer() for _ in range(produced.integer())}
            result.kernels = [produced.text().decode() for _ in range(produced.integer())]
            for name, operand in case.arrays.items():
                if isinstance(operand, (Output, InOut)):
                    like = operand if isinstance(operand, Output) else operand.array
                    values = np.frombuffer(produced.text(), dtype=like.dtype)
                    result.arrays[name] = values.reshape(tuple(like.shape)).copy()
        results.append(result)
    return results


def _array(operand: NDArray[Any] | Input | InOut) -> NDArray[Any]:
    return operand.array if isinstance(operand, (Input, InOut)) else operand


def _byte_count(operand: Operand) -> int:
    if operand is None:
        return 0
    if isinstance(operand, Output):
        return math.prod(operand.shape) * np.dtype(operand.dtype).itemsize
    return _array(operand).nbytes


def _text(text: str | bytes) -> bytes:
    data = text.encode() if isinstance(text, str) else text
    return struct.pack("<q", len(data)) + data


class _Reader:
    def __init__(self, data: bytes) -> None:
        self.data = data
        self.at = 0

    def at_end(self) -> bool:
        return self.at >= len(self.data)

    def integer(self) -> int:
        self.at += 8
        return int(struct.unpack_from("<q", self.data, self.at - 8)[0])

    def text(self) -> bytes:
        size = self.integer()
        self.at += size
        return self.data[self.at - size : self.at]
