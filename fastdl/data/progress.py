"""A progress bar for work that takes seconds, on standard error and only where a person is watching."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

__all__ = ["progress_bar"]


@contextmanager
def progress_bar(
    description: str, total: int | None, unit: str, *, scale: bool = False
) -> Iterator[Callable[[int], None]]:
    """Show a bar while the block runs and yield the function that advances it by a number of units.

    Args:
        description: what is going on.
        total: how many units there are, None if that is unknown.
        unit: their name, as "images" or "B".
        scale: show 12.3M in place of 12300000.
    """
    if not sys.stderr.isatty():
        yield lambda count: None
        return
    from tqdm import tqdm  # type: ignore[import-untyped]

    with tqdm(total=total, desc=description, unit=unit, unit_scale=scale, leave=False, file=sys.stderr) as bar:

        def advance(count: int) -> None:
            bar.update(count)

        yield advance
