"""The measured tables, as Markdown, each for one or more runs and in one language."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from . import table
from .cases import LAYOUT_LABELS
from .records import GRAPH, CaseRecord
from .sections import Section
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
