"""Other implementations of an op, each measured only where it is installed, fits the case and gives the right answer.

A peer is one entry in the ``peers`` of its op's benchmark. ``load`` imports its package, so that a missing one costs
nothing, and returns ``(case) -> function`` as the benchmark's own ``eager`` does, or None for a case that it cannot do.
One that is missing is listed as not installed, one that raises is listed with its reason, and one that is wrong as
wrong.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Peer:
    """``name`` heads its times.

    Attributes:
        package: the modules that must be importable, separated by spaces, or None where torch itself is enough.
        devices: the kinds of device it runs on.
        compiles: it is made by torch.compile, and left out where that is.
        only_forward: it has no backward pass: it is judged by its output and timed in the forward pass alone.
    """

    name: str
    load: Callable[[], Callable[[Any], Callable[..., Any] | None]]
    package: str | None = None
    devices: frozenset[str] = frozenset({"cpu", "cuda"})
    only_forward: bool = False
    compiles: bool = False

    def installed(self) -> bool:
        return self.package is None or all(_importable(name) for name in self.package.split())

    def available(self, device: str) -> bool:
        return device in self.devices and self.installed()


def _importable(name: str) -> bool:
    if name in sys.modules:
        return True
    return importlib.util.find_spec(name) is not None


def not_installed(peers: Iterable[Peer], device: str) -> dict[str, str]:
    """The peers for this kind of device that are not there, each with what it needs."""
    return {peer.name: peer.package or "" for peer in peers if device in peer.devices and not peer.installed()}
