"""What is known of a native library, and how its absence is told."""

from dataclasses import dataclass
from pathlib import Path


class FastdlWarning(RuntimeWarning):
    """The package works, but not in the way that was hoped for; the text says why and what to do."""


@dataclass(frozen=True)
class NativeStatus:
    """State of a native library.

    available: the library is loaded, or (``status_without_building``) lies ready to be loaded.
    reason: empty, or why it is not available and what to do about it.
    absent: whether the machine lacks what the library is for, such as a GPU, so that nobody need be warned.
    path: the shared library, where there is one.
    features: the instruction-set extensions that the library needs, by their names in ``/proc/cpuinfo``.
    built_in_seconds: what building took, if this process built it.
    """

    available: bool
    reason: str = ""
    path: Path | None = None
    features: tuple[str, ...] = ()
    built_in_seconds: float | None = None
    absent: bool = False


class NativeUnavailableError(Exception):
    """The native library cannot be had: ``cause`` says why, ``cure`` what the user can do."""

    def __init__(self, cause: str, cure: str) -> None:
        super().__init__(f"{cause} {cure}")
        self.cause = cause
        self.cure = cure


class NativeAbsentError(NativeUnavailableError):
    """What the library needs is no part of this machine, such as a GPU: a fact to be told to who asks, not a fault."""
