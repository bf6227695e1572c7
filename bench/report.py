"""Measured tables in the texts, written from the results, so that no number is typed by hand.

A block looks like this, and what lies between its marks is replaced::

    <!-- bench:summary en -->
    <!-- bench:end -->

Blocks: ``summary`` (means over all cases), ``cases`` (every case), ``memory`` (the output pool on and off), ``added``
(what is added to a part of the work alone), ``training`` (whole steps of a network); languages ``en`` and ``ko``. With
an op's name before the language, as in ``bench:cases layer_norm en``, a block is of that op alone.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import machine, results, table
from .cases import LAYOUT_LABELS
from .records import GRAPH, CaseRecord
from .summary import (
    FORWARD,
    FORWARD_BACKWARD,
    PASSES,
    Added,
    added_to_parts,
    call_overhead,
    saved_ratio,
    share_of_floor,
    speedup,
    summarise,
)
from .wording import WORDS

MARK = re.compile(
    r"<!-- bench:(?P<name>[a-z]+)(?: (?P<op>[a-z]+(?:_[a-z]+)+|attention))? (?P<language>[a-z]+) -->\n"
    r"(?P<body>.*?)<!-- bench:end -->",
    re.DOTALL,
)
OPENING = re.compile(r"<!-- bench:(?!end )")
FULL_SELECTION = {"shapes": "full", "layout": "both", "dtype": "all", "pool": "both"}


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
    """Every finished full run in the folder's JSON files. Raises ReportError where there is none."""
    sections: list[Section] = []
    for path in sorted(folder.glob("*.json")):
        content = results.read(path)
        sections += [
            Section(content["machine"], part["run"], results.load_records(part))
            for part in content["operators"].values()
            if part["run"]["selection"] == FULL_SELECTION
        ]
        sections += [
            Section(content["machine"], {**run, "memory_copy_bandwidth": 0.0}, [], name)
            for name, run in content.get("training", {}).items()
        ]
    if not sections:
        raise ReportError(f"{folder} holds no finished full run: run `python -m bench` first")
    return sections


def rewrite(text: str, sections: Sequence[Section], name: str = "text") -> str:
    """The text with every block made anew. Raises ReportError for a block that is unknown or has no end."""
    if len(OPENING.findall(text)) != len(MARK.findall(text)):
        raise ReportError(
            f"{name}: a block must be `<!-- bench:NAME LANGUAGE -->`, lines, `<!-- bench:end -->`; one is not"
        )

    def replace(match: re.Match[str]) -> str:
        block, op, language = match["name"], match["op"], match["language"]
        if block not in BLOCKS or language not in WORDS:
            raise ReportError(
                f"{name}: block {block!r} in language {language!r} is unknown; blocks: {', '.join(BLOCKS)}; "
                f"languages: {', '.join(WORDS)}"
            )
        chosen = [s for s in sections if bool(s.training) == (block == "training")]
        if op is not None:
            chosen = [section for section in chosen if section.run["operator"] == op]
        if not chosen:
            raise ReportError(f"{name}: nothing was measured for the block {block!r}" + (f" of {op!r}" if op else ""))
        head = " ".join(filter(None, (block, op, language)))
        return f"<!-- bench:{head} -->\n{BLOCKS[block](chosen, WORDS[language])}<!-- bench:end -->"

    return MARK.sub(replace, text)


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]], left: int) -> str:
    """A Markdown table whose first ``left`` columns are text and whose others are numbers."""
    rule = ["---"] * left + ["---:"] * (len(header) - left)
    return "".join(f"| {' | '.join(row)} |\n" for row in (header, rule, *rows))


def summary_block(sections: Sequence[Section], words: dict[str, str]) -> str:
    """For each machine its means by op, dtype, pass and pool, then what calls and saved bytes come to."""
    text = ""
    for group in _by_machine(sections):
        text += f"\n{_head(group[0], words)}\n\n"
        rows = [
            [
                section.run["title"], s.dtype, words[s.pass_name], words[s.pool or "none"], str(s.cases),
                _bold(table.ratio(s.over_eager)), table.ratio(s.over_compile), table.ratio(s.over_compile_least),
                table.ratio(s.over_best), table.percent(s.floor_share),
            ]
            for section in group
            for s in summarise(section.records)
        ]  # fmt: skip
        header = ("op", "dtype", "pass", "pool", "count", "eager", "compile", "least", "best", "floor")
        text += markdown_table([words[column] for column in header], rows, left=4)
        for section in group:
            notes = _notes(section, words)
            text += f"\n{section.run['title']}: {' '.join(notes)}\n" if notes else ""
    return text + "\n"


def cases_block(sections: Sequence[Section], words: dict[str, str]) -> str:
    """Every case, forward and backward together, behind a fold."""
    text = ""
    for group in _by_machine(sections):
        for section in group:
            rows = []
            for record in section.records:
                for m in record.measurements:
                    if m.pass_name != FORWARD_BACKWARD or m.pool in ("off", GRAPH) or "ours" not in m.times:
                        continue
                    median = {name: table.seconds(times.median) for name, times in m.times.items()}
                    rows.append([
                        record.case.label.replace("x", "×"), LAYOUT_LABELS[record.case.layout], record.case.dtype,
                        median["ours"], median.get("eager", "-"), median.get("compile", "-"), table.seconds(m.floor),
                        _bold(table.ratio(speedup(m, "eager"))), table.percent(share_of_floor(m)), _kept(record),
                    ])  # fmt: skip
            header = ("shape", "layout", "dtype", "ours", "torch", "compiled", "bound", "speedup", "floor", "kept")
            title = f"{words['all']}: {section.run['title']}, {words[FORWARD_BACKWARD]}, {section.machine['name']}"
            body = markdown_table([words[column] for column in header], rows, left=3)
            text += f"\n<details>\n<summary>{title}</summary>\n\n{body}\n</details>\n"
    return text + "\n"


def memory_block(sections: Sequence[Section], words: dict[str, str]) -> str:
    """The large cases with the output pool on and off."""
    text = ""
    for group in _by_machine(sections):
        rows = []
        for section in group:
            for record in section.records:
                pairs: dict[str, dict[str | None, Any]] = {}
                for m in record.measurements:
                    pairs.setdefault(m.pass_name, {})[m.pool] = m
                for pass_name, by_pool in pairs.items():
                    if not {"on", "off"} <= by_pool.keys() or any("ours" not in m.times for m in by_pool.values()):
                        continue
                    on, off = by_pool["on"], by_pool["off"]
                    rows.append([
                        section.run["title"], record.case.label.replace("x", "×"), LAYOUT_LABELS[record.case.layout],
                        record.case.dtype, words[pass_name], f"{record.case.tensor_bytes / 2**20:.1f} MiB",
                        table.seconds(off.times["ours"].median), table.seconds(on.times["ours"].median),
                        table.ratio(speedup(off, "eager")), table.ratio(speedup(on, "eager")),
                    ])  # fmt: skip
        if not rows:
            continue
        header = [words[column] for column in ("op", "shape", "layout", "dtype", "pass", "mebibytes")]
        for quantity in (words["ours"], words["eager"]):
            header += [f"{quantity}, {words['pool']} {words[state]}" for state in ("off", "on")]
        text += f"\n{_head(group[0], words)}\n\n" + markdown_table(header, rows, left=5)
    return text + "\n"


def added_block(sections: Sequence[Section], words: dict[str, str]) -> str:
    """What fastdl and eager take beyond a part of the work that is timed alone, as shares of the part's time."""
    text = ""
    for group in _by_machine(sections):
        rows: dict[tuple[str, ...], dict[str, Added]] = {}
        for section in group:
            for added in added_to_parts(section.records):
                key = (section.run["title"], added.part, LAYOUT_LABELS[added.layout], added.dtype, added.pass_name)
                rows.setdefault(key, {})[added.contender] = added
        if not rows:
            continue
        header = [words[column] for column in ("op", "part", "layout", "dtype", "pass")]
        header += [f"{words[name]}, {words[kind]}" for name in ("ours", "torch") for kind in ("median", "most")]
        body = [
            [
                title, part, layout, dtype, " ".join(words.get(word, word) for word in pass_name.split()),
                *(f"{value:+.1%}" for name in ("ours", "eager") for value in (by[name].median, by[name].most)),
            ]
            for (title, part, layout, dtype, pass_name), by in rows.items()
            if {"ours", "eager"} <= by.keys()
        ]  # fmt: skip
        text += f"\n{_head(group[0], words)}\n\n" + markdown_table(header, body, left=5)
    return text + "\n"


def training_block(sections: Sequence[Section], words: dict[str, str]) -> str:
    """Whole steps of a network: time, peak memory, and how far the losses lie apart."""
    text = ""
    for section in sections:
        run = section.run
        text += f"\n{section.training}. {_head(section, words)}\n\n"
        ours = run["times"]["ours"]["median"]
        body = [
            [
                "fastdl" if name == "ours" else name, table.seconds(times["median"]),
                table.percent((times["upper_quartile"] - times["lower_quartile"]) / times["median"]),
                _bold(table.ratio(times["median"] / ours)), f"{run['peak_bytes'][name] / 2**20:.0f} MiB",
            ]
            for name, times in run["times"].items()
        ]  # fmt: skip
        header = [words[column] for column in ("step", "time", "spread", "by_ours", "peak")]
        text += markdown_table(header, body, left=1)
        if run["losses"]:
            compared = run["losses"]
            text += "\n" + words["losses"].format(
                steps=compared["steps"],
                ours=f"{compared['between_ours_and_eager']:.3f}",
                orders=f"{compared['between_two_orders']:.3f}",
            ) + "\n"  # fmt: skip
    return text + "\n"


BLOCKS: dict[str, Callable[[Sequence[Section], dict[str, str]], str]] = {
    "summary": summary_block,
    "cases": cases_block,
    "memory": memory_block,
    "added": added_block,
    "training": training_block,
}


def _by_machine(sections: Sequence[Section]) -> list[list[Section]]:
    groups: dict[str, list[Section]] = {}
    for section in sections:
        groups.setdefault(f"{section.machine}", []).append(section)
    return list(groups.values())


def _head(section: Section, words: dict[str, str]) -> str:
    """Machine, versions and date of a table."""
    run, versions = section.run, section.run["versions"]
    commit = f", {run['commit'][:12]}" if run["commit"] else ""
    cpu = section.machine["device"] == "cpu"
    head = words["head" if cpu else "gpu_head"].format(
        name=section.machine["name"], threads=run["threads"], torch=versions["torch"], python=versions["python"],
        cuda=versions.get("cuda", "-"), date=run["date"][:10], commit=commit,
        instructions=f", {section.machine['instructions']}" if cpu else "",
    )  # fmt: skip
    copy = f"{run['memory_copy_bandwidth'] / 1e9:.0f}"
    return head if section.training else head + " " + words["copy"].format(copy=copy)


def _notes(section: Section, words: dict[str, str]) -> list[str]:
    """What is kept for backward, and what a call costs where the work is nothing."""
    notes = []
    saved = saved_ratio(section.records)
    if saved is not None:
        notes.append(words["saved"].format(saved=table.percent(saved)))
    costs: dict[str, dict[str, float]] = {}
    for record, measurement, taken in call_overhead(section.records, section.run["overhead_size"]):
        costs.setdefault(measurement.pass_name, {})[LAYOUT_LABELS[record.case.layout]] = taken * 1e6
    if len(costs) == len(PASSES):
        forward, both = (" / ".join(f"{value:+.1f}" for value in costs[name].values()) for name in PASSES)
        shape, layouts = "×".join(map(str, section.run["overhead_size"])), " / ".join(costs[FORWARD])
        notes.append(words["overhead"].format(shape=shape, layouts=layouts, forward=forward, both=both))
    return notes


def _kept(record: CaseRecord) -> str:
    saved = record.saved_bytes
    return table.percent(saved["ours"] / saved["eager"]) if saved.get("eager") and "ours" in saved else "-"


def _bold(text: str) -> str:
    return f"**{text}**"


def main(argv: list[str]) -> int:
    """``report``: rewrites the blocks; ``--check`` only tells, by status 1, whether a file would change."""
    parser = argparse.ArgumentParser(
        prog="python -m bench report", description="Writes measured tables into the texts."
    )
    parser.add_argument(
        "files", nargs="*", type=Path, help="texts with marked blocks; those of the checkout if none is named"
    )
    parser.add_argument("--results-dir", type=Path, default=machine.BENCH / "results", help="folder of the results")
    parser.add_argument("--check", action="store_true", help="change nothing; status 1 where a text is not up to date")
    options = parser.parse_args(argv)
    files = options.files or _texts()
    try:
        sections = load_sections(options.results_dir)
        stale = []
        for path in files:
            text = path.read_text(encoding="utf-8")
            made = rewrite(text, sections, path.name)
            if made != text:
                stale.append(path)
                if not options.check:
                    results.write_text(path, made)
    except (ReportError, results.ResultsError, OSError) as error:
        print(f"bench report: {error}", file=sys.stderr)
        return 1
    for path in stale:
        print(f"{'out of date' if options.check else 'rewritten'}: {path}")
    if not stale:
        print("Every block is up to date.")
    return 1 if options.check and stale else 0


def _texts() -> list[Path]:
    """The checkout's Markdown files that hold a block."""
    candidates = [*machine.CHECKOUT.glob("*.md"), *(machine.CHECKOUT / "docs").rglob("*.md")]
    return sorted(path for path in candidates if OPENING.search(path.read_text(encoding="utf-8")))
