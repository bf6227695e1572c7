"""The runs that texts and pictures are made from: finished full ones, or default ones where there is no full one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import results
from .records import CaseRecord

FULL_SELECTION = {"shapes": "full", "layout": "both", "dtype": "all", "pool": "both"}
DEFAULT_SELECTION = {"shapes": "default", "layout": "both", "dtype": "all", "pool": "on"}


class ReportError(RuntimeError):
    """A block or a results folder that the report cannot be made from."""


@dataclass(frozen=True)
class Section:
    """One op's results on one machine, or with no records its training steps of one network."""

    machine: dict[str, Any]
    run: dict[str, Any]
    records: list[CaseRecord]
    training: str = ""


def load_sections(folder: Path) -> list[Section]:
    """The finished runs of the folder's JSON files, one an op and machine. Raises ReportError where there is none."""
    chosen: dict[tuple[str, str], tuple[int, Section]] = {}
    training: list[Section] = []
    for path in sorted(folder.glob("*.json")):
        content = results.read(path)
        for name, part in content["operators"].items():
            rank = rank_of(part["run"]["selection"])
            key = f"{content['machine']}", name
            if rank and (key not in chosen or rank > chosen[key][0]):
                chosen[key] = rank, Section(content["machine"], part["run"], results.load_records(part))
        training += [
            Section(content["machine"], {**run, "memory_copy_bandwidth": 0.0}, [], name)
            for name, run in content.get("training", {}).items()
        ]
    sections = [section for _, section in chosen.values()] + training
    if not sections:
        raise ReportError(f"{folder} holds no finished run: run `python -m bench` first")
    return sections


def rank_of(selection: Mapping[str, str]) -> int:
    """0 for a run that nothing is quoted from; else the more the better: all shapes, then more contenders."""
    plain = {name: value for name, value in selection.items() if name != "max_autotune"}
    if plain not in (FULL_SELECTION, DEFAULT_SELECTION):
        return 0
    return 1 + 2 * (plain == FULL_SELECTION) + ("max_autotune" in selection)


def load_neighbours(folder: Path) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """Machine and run of each file that holds what fusing an op's neighbours could bring."""
    contents = [results.read(path) for path in sorted(folder.glob("*.json"))]
    return [(content["machine"], content["neighbours"]) for content in contents if "neighbours" in content]
