"""``docs/kernels.md``: the table of what every kernel uses, written and read.

A cell holds one value for each architecture, or a single one where they agree. The tests read the table again: each
compares the cells of the kernels that it has just compiled.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from fastdl.inspection.resources import Resources, Widths
from fastdl.kernels.shipped import ARCHITECTURES, Limits

from .limits import CudaLimits

DOCUMENT = Path(__file__).resolve().parent.parent.parent / "docs" / "kernels.md"
BETWEEN, ABSENT = " · ", "–"
ROW = re.compile(r"^\| `(?P<name>[^`]+)` \| (?P<cells>.*) \|$")
HEADING = re.compile(r"^## (?P<language>.+)$")
VERSION = re.compile(r"^Compiled by (?P<version>.+)\.$")

NAMES = [f"sm_{number}" for number in ARCHITECTURES]
INTRODUCTION = f"""# What the GPU kernels compile to

Written by `python -m tests.aot`, which compiles every configuration that ships for {", ".join(NAMES)}, without
a GPU. `python -m tests.aot --check` tells whether this page is up to date, and the tests in `tests/aot` hold each
number to the limits that stand beside the kernel.

- **registers**: per thread, with the limit. **shared**: bytes of shared memory per block; of CUDA C++ without what is
  asked for at launch, and from sm_90 on with the 1024 that the system keeps. **spilled**: bytes of local memory per
  thread, or moved to and from it.
- **loads**, **stores**: instructions on global memory by width, *bytes*×*count*. A main tensor is reached 16 bytes at a
  time; the narrower ones read parameters and statistics, or a ragged end.
- **matrix**: matrix instructions, where a kernel needs them.
- Where architectures differ a cell holds a value for each of {BETWEEN.join(NAMES)}.

These are properties of the machine code. How fast it runs is another question, which only a GPU answers.
"""

# Configuration -> architecture -> column -> text.
Cells = dict[str, dict[int, dict[str, str]]]


@dataclass
class Section:
    """One language: what compiled it, and by subject (a kernel, a file) its configurations."""

    language: str
    version: str
    subjects: dict[str, Cells]

    def cells(self) -> Cells:
        return {name: cells for subject in self.subjects.values() for name, cells in subject.items()}


def cells(resources: Resources, limits: Limits | CudaLimits) -> dict[str, str]:
    """One configuration's cells for one architecture, by column."""
    return {
        "registers": f"{resources.registers} of {limits.registers}",
        "shared": str(resources.shared_bytes),
        "spilled": str(resources.spilled_bytes),
        "loads": _widths(resources.loads),
        "stores": _widths(resources.stores),
        "matrix": " ".join(f"{name}×{count}" for name, count in sorted(resources.matrix.items())) or "none",
    }


def _widths(widths: Widths) -> str:
    return " ".join(f"{width}×{count}" for width, count in sorted(widths.items(), reverse=True)) or "none"


def render(sections: Sequence[Section]) -> str:
    """The document."""
    lines = [INTRODUCTION]
    for section in sections:
        lines += [f"## {section.language}", "", f"Compiled by {section.version}.", ""]
        for subject, configurations in section.subjects.items():
            lines += [f"### {subject}", "", *_table(configurations), ""]
    return "\n".join(lines).rstrip("\n") + "\n"


def _table(configurations: Cells) -> list[str]:
    columns = list(next(iter(next(iter(configurations.values())).values())))
    lines = ["| configuration | " + " | ".join(columns) + " |", "| --- " * (len(columns) + 1) + "|"]
    for name, by_architecture in configurations.items():
        texts = [
            _join([by_architecture.get(number, {}).get(column, ABSENT) for number in ARCHITECTURES])
            for column in columns
        ]
        lines.append(f"| `{name}` | " + " | ".join(texts) + " |")
    return lines


def _join(values: Sequence[str]) -> str:
    return values[0] if len(set(values)) == 1 else BETWEEN.join(values)


def parse(text: str) -> dict[str, Section]:
    """The sections of a document by language. Raises ValueError for a row that ``render`` cannot have written."""
    sections: dict[str, Section] = {}
    section, subject, columns = None, "", list[str]()
    for line in text.splitlines():
        if heading := HEADING.match(line):
            section = sections[heading["language"]] = Section(heading["language"], "", {})
        elif section is None:
            continue
        elif version := VERSION.match(line):
            section.version = version["version"]
        elif line.startswith("### "):
            subject = line.removeprefix("### ")
            section.subjects[subject] = {}
        elif line.startswith("| configuration | "):
            columns = line.strip("| ").split(" | ")[1:]
        elif row := ROW.match(line):
            section.subjects[subject][row["name"]] = _split(columns, row["cells"].split(" | "))
    return sections


def _split(columns: Sequence[str], texts: Sequence[str]) -> dict[int, dict[str, str]]:
    found: dict[int, dict[str, str]] = {number: {} for number in ARCHITECTURES}
    for column, text in zip(columns, texts, strict=True):
        values = text.split(BETWEEN)
        if len(values) not in (1, len(ARCHITECTURES)):
            raise ValueError(f"{column}: {text!r} has a value for each of {len(values)} architectures")
        for number, value in zip(ARCHITECTURES, values * (len(ARCHITECTURES) // len(values)), strict=True):
            if value != ABSENT:
                found[number][column] = value
    return {number: cells for number, cells in found.items() if cells}


def differences(language: str, architecture: int, measured: Mapping[str, dict[str, str]], document: str) -> list[str]:
    """A sentence for each of the configurations whose row is missing in the document, or says something else."""
    section = parse(document).get(language)
    written = section.cells() if section else {}
    found = []
    for name, expected in measured.items():
        row = written.get(name, {}).get(architecture)
        if row is None:
            found.append(f"{name} on sm_{architecture} has no row")
        elif row != expected:
            columns = [
                f"{column} is {expected.get(column, ABSENT)}, not {row.get(column, ABSENT)}"
                for column in {**expected, **row}
                if expected.get(column) != row.get(column)
            ]
            found.append(f"{name} on sm_{architecture}: {', '.join(columns)}")
    return found
