"""A record: a file with a line of JSON for each test, written as the test ends."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

MESSAGE_LENGTH = 400


def begin(path: Path) -> None:
    """An empty record."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("", encoding="utf-8")


def write(path: Path, test: str, outcome: str, seconds: float = 0.0, message: str = "") -> None:
    """One line. ``collected`` with the number of tests in ``seconds`` comes first, so that one sees what is missing."""
    line = {"test": test, "outcome": outcome, "seconds": round(seconds, 4), "message": message[-MESSAGE_LENGTH:]}
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")


def read(path: Path) -> list[dict[str, Any]]:
    """The lines; a torn last one is left out."""
    lines: list[dict[str, Any]] = []
    with contextlib.suppress(OSError, ValueError):
        lines.extend(json.loads(line) for line in path.read_text(encoding="utf-8").splitlines())
    return lines
