"""Tables of plain text that fit a terminal: what is too wide goes on in another table below, with the names again."""

from collections.abc import Sequence
from dataclasses import dataclass

GAP = "  "
# A name is cut in its middle rather than take more than this part of the width.
NAMES_SHARE = 0.42
LEAST_NAME = 16


@dataclass(frozen=True)
class Group:
    """Rows under one heading: each a name and its cells, in the order of the columns."""

    heading: str
    rows: Sequence[tuple[str, Sequence[str]]]


def render(columns: Sequence[str], groups: Sequence[Group], width: int) -> list[str]:
    """The lines, none wider than ``width`` characters unless a name of 16 and a single column are.

    Numbers are set to the right, and so are their headings. A column in which no row has anything is left out.
    """
    rows = [row for group in groups for row in group.rows]
    used = [index for index in range(len(columns)) if any(cells[index] for _, cells in rows)]
    widths = {index: max(len(columns[index]), *(len(cells[index]) for _, cells in rows)) for index in used}
    # Names are indented below their heading.
    natural = max((len(name) for name, _ in rows), default=0) + len(GAP)
    names = max(min(natural, int(width * NAMES_SHARE)), LEAST_NAME)
    lines: list[str] = []
    for block in _blocks(used, widths, width - names):
        lines += [""] if lines else []
        lines.append(_line("", [columns[index] for index in block], [widths[index] for index in block], names))
        for group in groups:
            lines.append(shorten(group.heading, width))
            lines += [
                _line(
                    GAP + shorten(name, names - len(GAP)),
                    [cells[index] for index in block],
                    [widths[index] for index in block],
                    names,
                )
                for name, cells in group.rows
            ]
    return lines


def shorten(text: str, width: int) -> str:
    """The text, or its beginning and its end with an ellipsis between them."""
    if len(text) <= width:
        return text
    head = (width - 1) // 2
    tail = width - 1 - head
    return f"{text[:head]}…{text[len(text) - tail :] if tail else ''}"


def _blocks(used: Sequence[int], widths: dict[int, int], room: int) -> list[list[int]]:
    """The columns, cut where the room is used up; one that alone is too wide stands alone."""
    blocks: list[list[int]] = []
    left = -1
    for index in used:
        needed = len(GAP) + widths[index]
        if not blocks or needed > left:
            blocks.append([])
            left = room
        blocks[-1].append(index)
        left -= needed
    return blocks


def _line(name: str, cells: Sequence[str], widths: Sequence[int], names: int) -> str:
    parts = [f"{name:{names}}", *(f"{cell:>{width}}" for cell, width in zip(cells, widths, strict=True))]
    return GAP.join(parts).rstrip()
