"""What a planted mistake is."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Mutation:
    """``old`` becomes ``new`` in ``file``, a path in the repository, whose folder says which tests must notice."""

    name: str
    file: str
    old: str
    new: str
