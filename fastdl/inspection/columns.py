"""The cells of the tables that ``fastdl inspect`` prints; ``docs/inspection.md`` explains each column."""

from collections.abc import Mapping, Sequence
from itertools import groupby
from textwrap import wrap

from . import instructions
from .catalog import CUDA, TRITON
from .document import compilers
from .measuring import Row
from .occupancy import REGISTERS
from .text_table import Group, render

RESOURCES = ("threads", "regs", "shared", "spills", "blocks", "warps", "occup.", "limited by")
MEMORY = ("loads", "stores", "async copies", "LDS/STS", "atomics")
MIX = ("total", "tensor cores", "MUFU", "FP32", "FP16", "FP64", "integer", "memory", "other")
# Registers are called as their column is.
LIMITERS = {REGISTERS: "regs"}
NONE = "–"
BOUND_NOTE = "≤ before threads: the launch bound; occupancy is that of blocks as large, and smaller ones may fit better"
SHAPE_NOTE = (
    "+shape: and dynamic shared memory by the tensors' shape, without which the occupancy is an upper bound (≤)"
)
# More than the widest table needs; a wider terminal gets no wider lines.
WIDEST = 120
# Room for a name and the widest column.
NARROWEST = 60


def tables(rows: Sequence[Row], width: int) -> str:
    """All rows as text, a section for each architecture and language, with lines of at most 60 to 120 characters."""
    width = min(max(width, NARROWEST), WIDEST)
    lines: list[str] = []
    for (architecture, language), found in groupby(rows, key=lambda row: (row.architecture, row.language)):
        section = list(found)
        lines += [*wrap(_title(architecture, language, section), width), ""]
        for columns, cells in ((RESOURCES, _resources), (MEMORY, _memory), (MIX, _mix)):
            groups = [
                Group(heading, [(_name(row), cells(row)) for row in members])
                for heading, members in _by_heading(section).items()
            ]
            lines += [*render(columns, groups, width), ""]
    if any(not row.resources.launch.exact for row in rows):
        lines += wrap(BOUND_NOTE, width)
    if any(row.is_bound for row in rows):
        lines += wrap(SHAPE_NOTE, width)
    return "\n".join(lines).rstrip("\n")


def _title(architecture: int, language: str, rows: Sequence[Row]) -> str:
    versions = compilers(rows)
    known = [versions[name] for name in (language, f"{language} sm_{architecture}") if name in versions]
    kinds = "configuration" if language == TRITON else "kernel"
    count = f"{len(rows)} {kinds}{'' if len(rows) == 1 else 's'}"
    return f"sm_{architecture} · {language} · {', '.join(known)} · {count}"


def _by_heading(rows: Sequence[Row]) -> dict[str, list[Row]]:
    found: dict[str, list[Row]] = {}
    for row in rows:
        found.setdefault(_heading(row), []).append(row)
    return found


def _heading(row: Row) -> str:
    """What the names below it have in common and leave out: the op and the kernel, or the file and the namespace."""
    if row.language == CUDA:
        namespace, found, _ = row.name.partition("<")[0].rpartition("::")
        return f"{row.subject} · {namespace}" if found else row.subject
    return f"{row.name.partition('/')[0]} · {row.subject}"


def _name(row: Row) -> str:
    if row.language == CUDA:
        head, bracket, arguments = row.name.partition("<")
        return head.rpartition("::")[2] + bracket + arguments
    kernel = row.subject.rpartition(".")[2]
    return "/".join(part for part in row.name.split("/")[1:] if part != kernel and not part.startswith("sm_"))


def _resources(row: Row) -> list[str]:
    resources, launch, fits = row.resources, row.resources.launch, row.occupancy
    bound = "≤" if row.is_bound else ""
    return [
        f"{'' if launch.exact else '≤'}{launch.threads}",
        str(resources.registers),
        _shared(row),
        str(resources.spilled_bytes),
        f"{bound}{fits.blocks}",
        f"{bound}{fits.warps}",
        f"{bound}{fits.share:.0%}",
        "+".join(LIMITERS.get(name, name) for name in fits.limited_by),
    ]


def _shared(row: Row) -> str:
    """Static and dynamic: ``1152+27648``, ``256`` where there is none of the latter, ``0+shape``."""
    launch = row.resources.launch
    dynamic = launch.dynamic_shared_bytes
    if dynamic == 0:
        return str(launch.static_shared_bytes)
    return f"{launch.static_shared_bytes}+{'shape' if dynamic is None else dynamic}"


def _memory(row: Row) -> list[str]:
    counts = row.resources.instructions
    classes = instructions.by_class(counts)
    return [
        _widths(row.resources.loads),
        _widths(row.resources.stores),
        _counts(instructions.by_name(counts, instructions.COPY)),
        str(classes.get(instructions.SHARED, 0)),
        str(classes.get(instructions.ATOMIC, "")),
    ]


def _mix(row: Row) -> list[str]:
    classes = instructions.by_class(row.resources.instructions)
    total = sum(classes.values())
    tensor = classes.get(instructions.TENSOR, 0)
    shown = (instructions.SPECIAL, instructions.FP32, instructions.FP16, instructions.FP64, instructions.INTEGER)
    counts = [*(classes.get(name, 0) for name in shown), sum(classes.get(name, 0) for name in instructions.MEMORY)]
    counts.append(total - tensor - sum(counts))
    matrix = f"{_counts(row.resources.matrix)} {_share(tensor, total)}" if tensor else NONE
    return [str(total), matrix, *(_share(count, total) for count in counts)]


def _share(count: int, total: int) -> str:
    if not count:
        return NONE
    share = f"{count / total:.0%}"
    return "<1%" if share == "0%" else share


def _widths(widths: Mapping[int, int]) -> str:
    return " ".join(f"{width}×{count}" for width, count in sorted(widths.items(), reverse=True)) or NONE


def _counts(counts: Mapping[str, int]) -> str:
    return " ".join(f"{name}×{count}" for name, count in counts.items()) or NONE
