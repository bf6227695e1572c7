"""Other implementations of an op, each measured only where it is installed, fits the case and gives the right answer.

A peer is one entry in the ``peers`` of its op's benchmark. ``load`` imports its package, so that a missing one costs
nothing, and returns ``(case) -> function`` as the benchmark's own ``eager`` does, or None for a case that it cannot do.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Peer:
    """``name`` heads its times; ``package`` is what must be installed, or None where torch itself is enough."""

    name: str
    load: Callable[[], Callable[[Any], Callable[..., Any] | None]]
    package: str | None = None
    devices: frozenset[str] = frozenset({"cpu", "cuda"})

    def available(self, device: str) -> bool:
        if device not in self.devices:
            return False
        return self.package is None or importlib.util.find_spec(self.package) is not None
