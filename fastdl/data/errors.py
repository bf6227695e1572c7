"""The error that every reader of this package raises."""

from __future__ import annotations

from pathlib import Path

__all__ = ["DataError"]


class DataError(ValueError):
    """A data file is missing, corrupt, truncated or of another kind.

    Args:
        path: the file or folder concerned.
        expected: what a usable one holds.
        found: what is there instead.
        advice: what to do about it, if more than replacing the file.
    """

    def __init__(self, path: Path | str, expected: str, found: str, advice: str = "") -> None:
        self.path = Path(path)
        self.expected = expected
        self.found = found
        self.advice = advice
        message = f"{self.path}: expected {expected}, found {found}"
        super().__init__(f"{message}. {advice}" if advice else message)

    def __reduce__(self) -> tuple[type[DataError], tuple[Path, str, str, str]]:
        return type(self), (self.path, self.expected, self.found, self.advice)
