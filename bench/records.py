"""What one measurement says, as objects and as JSON."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from .cases import Case
from .timing import Spread

# A contender that is fastdl: on the backend that is asked for, or on another one, as in ``ours/cuda``.
OURS, SEPARATOR = "ours", "/"
# `Measurement.pool` of work that was replayed from a CUDA graph.
GRAPH = "graph"


def is_ours(name: str) -> bool:
    """Whether a contender is fastdl, on whichever backend."""
    return name == OURS or name.startswith(OURS + SEPARATOR)


@dataclass(frozen=True)
class Measurement:
    """One pass over one case, all contenders interleaved.

    Attributes:
        pass_name: ``forward`` (no gradients asked for) or ``forward+backward``.
        pool: ``on`` or ``off``, the CPU output pool; None where there is none. On a GPU ``graph`` for calls that were
            replayed from a CUDA graph, without the cost of launching them.
        times: seconds a call by contender: ``ours``, ``eager``, ``compile`` and the peers; on a GPU also ``ours/cuda``
            or the like, ours on another backend than the one behind ``ours``.
        work_bytes: the least that this pass must move.
        copy_bandwidth: bytes/s (read and written) of copying the same inputs, timed in the same rounds.
        floor: seconds, ``work_bytes / copy_bandwidth`` for an op without matrix products.
        parts: seconds a call of what does a part of the work, timed in the same rounds.
    """

    pass_name: str
    pool: str | None
    times: dict[str, Spread]
    work_bytes: int
    copy_bandwidth: float
    floor: float
    parts: dict[str, Spread] = field(default_factory=dict)


@dataclass(frozen=True)
class CaseRecord:
    """All that was measured of one case.

    Attributes:
        input_sets: how many sets of inputs the calls went through in turn; 1 where a case fits the cores' own caches.
        saved_bytes: kept for backward, by contender.
        rejected: contenders that were not timed, each with the reason: a wrong answer, or a failed compilation.
        peak_bytes: on a GPU by contender, the most that forward and backward (where a case has no backward, forward)
            hold at a time beyond inputs and parameters.
        clocks: on a GPU its clocks, temperature and power ``before`` and ``after`` the case, as `clocks.read` gives
            them; empty where the driver does not tell.
        seconds: what measuring the case took, checks and compilations included; 0 where that was not kept.
        visits: how many times, minutes apart, the case was measured; the times are those of all together.
    """

    case: Case
    backend: str
    input_sets: int
    saved_bytes: dict[str, int] = field(default_factory=dict)
    rejected: dict[str, str] = field(default_factory=dict)
    measurements: tuple[Measurement, ...] = ()
    peak_bytes: dict[str, int] = field(default_factory=dict)
    clocks: dict[str, dict[str, Any]] = field(default_factory=dict)
    seconds: float = 0.0
    visits: int = 1


def by_backend(record: CaseRecord, measurement: Measurement) -> dict[str, float]:
    """Median seconds of ours on each backend that was timed, the one behind ``ours`` first."""
    times = {name: spread.median for name, spread in measurement.times.items() if is_ours(name)}
    return {name.partition(SEPARATOR)[2] or record.backend: seconds for name, seconds in times.items()}


def to_json(record: CaseRecord) -> dict[str, Any]:
    """The record as JSON's types."""
    content = asdict(record)
    content["measurements"] = list(content["measurements"])
    content["case"]["size"] = list(record.case.size)
    return content


def _spreads(content: dict[str, Any]) -> dict[str, Spread]:
    return {name: Spread(**spread) for name, spread in content.items()}


def from_json(content: dict[str, Any]) -> CaseRecord:
    """`to_json`'s inverse. Raises KeyError or TypeError for anything else."""
    case = {**content["case"], "size": tuple(content["case"]["size"])}
    measurements = tuple(
        Measurement(**{**m, "times": _spreads(m["times"]), "parts": _spreads(m.get("parts", {}))})
        for m in content["measurements"]
    )
    return CaseRecord(**{**content, "case": Case(**case), "measurements": measurements})
