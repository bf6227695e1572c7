"""docs/performance.md, written whole from the committed results: how it was measured, wins, and losses as plainly."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from . import table
from .blocks import markdown_table, summary_block, training_block
from .cases import LAYOUT_LABELS
from .comparison import measured
from .drift import sentence
from .figures import (
    BASELINES,
    CASES,
    RATIOS,
    ROOFLINE,
    Figure,
    by_machine,
    main_measurement,
    make_figures,
    ratios_of,
)
from .records import CaseRecord, Measurement, is_ours
from .sections import Section
from .summary import FORWARD, FORWARD_BACKWARD, geometric_mean, speedup
from .timing import FULL
from .wording import WORDS

IMAGES = "images"
HEAD = f"""# Performance

<!-- Written by `python -m bench report` from bench/results/*.json. What is typed here is lost. -->

Every number and picture of this page comes from the JSON files in `bench/results`, which `python -m bench`,
`python -m bench training` and `python -m bench neighbours` write. `python -m bench report --check` tells whether the
page is up to date, and `python -m bench --compare OLD.json NEW.json` what a new run changes.

## How it is measured

- All contenders of a case take turns within every round, so that whatever drifts on the machine hits them alike; the
  order changes from round to round. A turn of calls below {FULL.settle * 1e3:g} ms begins with one that is not
  timed, as contenders that share an allocator would find what they write to in the caches. A time is the median over
  the rounds ({FULL.seconds:g} s for all contenders of one comparison, and {FULL.least_rounds} rounds at least); its
  spread is the interquartile range. On a CPU every case is visited twice, once in a round of all ops and once in
  a second one, with half of the rounds each: the time is the middle of both medians, and the spread reaches over the
  quartiles of both. How far the two medians lie apart tells how well a time is reproduced; it is given for each op,
  and `--compare` calls no change what lies within it.
- A contender is checked before it is timed: output, gradients and changed buffers against the definition in float64.
  One that is wrong, or raises, is listed with the reason and not timed.
- "Forward" is timed without gradients, as in inference; "forward + backward" ends with the gradients of the input and
  of every parameter.
- Unless a case fits into the cores' own caches, calls go through so many sets of inputs that the last-level cache holds
  none of them when its turn comes again. Parameters, and attention's keys and values, stay the same from call to call.
- The floor of a case is the time of the bytes that it must move, at the speed of copying the same inputs in the same
  rounds, or of its matrix products at the machine's measured rate, whichever is longer. "Of the floor" is the floor
  over fastdl's time. A small case may go beyond it: its parameters and statistics come from a cache.
- A ratio "over" another is the other's time over fastdl's: above 1 fastdl is faster. Means are geometric.
- On a CPU outputs of a megabyte and more come from fastdl's pool where it is on ([memory.md](memory.md)). On a GPU
  times lie between two CUDA events; small cases are replayed from CUDA graphs besides, and clocks, temperature and peak
  memory are kept with every case.
- In the rooflines an addition, a multiplication or a function counts as one operation, by the op's definition; fastdl
  and eager torch are credited with the same operations and bytes, so that only time tells them apart. A point may lie
  above a roof: small cases come from a cache, and convolutions can be faster than the square product that was measured.
  Points of several ops at one place stand beside each other.
"""
LOSS_HEADER = ("shape", "layout", "dtype", "pass", "pool", "against", "fastdl", "the other", "ratio", "")


@dataclass(frozen=True)
class Loss:
    """A case in which torch was faster: the ratio of times and whether the spreads leave any doubt."""

    record: CaseRecord
    measurement: Measurement
    baseline: str
    ratio: float
    certain: bool


def page(
    sections: Sequence[Section],
    neighbours: Sequence[tuple[dict[str, Any], dict[str, Any]]],
    figures: Sequence[Figure],
) -> str:
    """The page's text."""
    ops = [section for section in sections if section.records]
    text = HEAD + machines(ops) + at_a_glance(ops, figures)
    for operator in dict.fromkeys(section.run["operator"] for section in ops):
        text += operator_part([s for s in ops if s.run["operator"] == operator], figures)
    training = [section for section in sections if section.training]
    if training:
        text += "\n## Training steps\n\nWhole steps: forward, loss, backward and the optimizer's, on random images.\n"
        text += training_block(training, WORDS["en"]).rstrip("\n") + "\n"
    return text + neighbours_part(neighbours)


def machines(sections: Sequence[Section]) -> str:
    """What was measured when, on what, and how fast that machine copies and multiplies."""
    text = "\n## Machines\n"
    for group in by_machine(sections):
        described = group[0].machine
        facts = [f"{described['cores']} cores", str(described["instructions"])] if "cores" in described else []
        facts += [f"CUDA {group[0].run['versions'].get('cuda', '?')}"] if described["device"] == "cuda" else []
        facts += [f"driver {described['driver']}"] if "driver" in described else []
        text += f"\n**{described['name']}**" + (f" ({', '.join(facts)})" if facts else "") + "\n\n"
        rows = []
        for section in group:
            run = section.run
            rates = ", ".join(f"{name} {rate / 1e9:.0f}" for name, rate in run["matrix_rates"].items())
            load = run.get("load_average_before")
            rows.append([
                f"`{run['operator']}`", run["date"][:10], (run["commit"] or "-")[:12], run["versions"]["torch"],
                run["versions"]["python"], str(run["threads"]), str(len(section.records)), f"{run['seconds'] / 60:.1f}",
                f"{run['memory_copy_bandwidth'] / 1e9:.0f}", rates, "-" if load is None else f"{load:.1f}",
            ])  # fmt: skip
        header = ("op", "date", "commit", "torch", "Python", "threads", "cases", "minutes", "copy, GB/s",
                  "products, GFLOP/s", "load before")  # fmt: skip
        text += markdown_table(header, rows, left=5)
        text += clocks_text(group)
        missing = {name: f"`{need}`" for section in group for name, need in _missing(section).items()}
        if missing:
            told = ", ".join(f"{name} ({need})" for name, need in sorted(missing.items()))
            text += f"\nNot installed there, and so not compared with: {told}.\n"
    return text


def clocks_text(group: Sequence[Section]) -> str:
    """On a GPU the clocks and temperatures between which its cases were measured, and what slowed it down."""
    states = [state for section in group for record in section.records for state in record.clocks.values()]
    told = []
    for name, unit in (("graphics_mhz", "MHz"), ("memory_mhz", "MHz of memory"), ("celsius", "°C"), ("watts", "W")):
        values = [state[name] for state in states if name in state]
        if values:
            told.append(f"{min(values):.0f} to {max(values):.0f} {unit}")
    reasons = sorted({reason for state in states for reason in state.get("slowed_by", [])})
    slowed = f" Slowed down at times by: {', '.join(reasons)}." if reasons else ""
    return f"\nBefore and after its cases: {', '.join(told)}.{slowed}\n" if told else ""


def peak_text(section: Section) -> str:
    """On a GPU the most that forward and backward hold beyond what is there before, as shares of eager's."""
    shares = [
        record.peak_bytes["ours"] / record.peak_bytes["eager"]
        for record in section.records
        if record.peak_bytes.get("eager") and "ours" in record.peak_bytes
    ]
    if not shares:
        return ""
    mean, most = geometric_mean(shares), max(shares)
    return f"Peak memory of a call: {mean:.0%} of eager's (geometric mean), at most {most:.0%}.\n\n"


def _missing(section: Section) -> dict[str, str]:
    found: dict[str, str] = section.run.get("not_installed", {})
    return found


def at_a_glance(sections: Sequence[Section], figures: Sequence[Figure]) -> str:
    """For each machine its pictures, and a row an op: means, and how many cases are won and lost."""
    text = "\n## At a glance\n"
    for group in by_machine(sections):
        text += f"\n### {group[0].machine['name']}\n\n"
        text += "".join(_image(f, figures) for f in _figures_of(group, figures, (RATIOS, ROOFLINE)))
        rows = []
        for section in group:
            row = [section.run["title"]]
            for pass_name in (FORWARD, FORWARD_BACKWARD):
                for baseline in BASELINES:
                    found = ratios_of(section, pass_name, baseline)
                    row.append(table.ratio(geometric_mean(found)) if found else table.ABSENT)
            for baseline in BASELINES:
                compared = len(_compared(section, baseline))
                lost = [loss for loss in losses(section) if loss.baseline == baseline]
                row.append(f"{compared - len(lost)} / {len(lost)}")
            rows.append(row)
        header = ["op"] + [f"{p}, over {b}" for p in ("forward", "forward + backward") for b in BASELINES]
        header += [f"won / lost against {b}" for b in BASELINES]
        text += markdown_table(header, rows, left=1)
    return text + (
        "\nThe means are those of calls with the pool on. Won and lost count every comparison, both passes and each "
        "state of the pool apart; a loss is any ratio below 1, be it within the spread. Each is listed below.\n"
    )


def operator_part(sections: Sequence[Section], figures: Sequence[Figure]) -> str:
    """One op: means, its picture, every loss, and what was not timed, machine by machine."""
    text = f"\n## {sections[0].run['title']}\n"
    for section in sections:
        text += summary_block([section], WORDS["en"]).rstrip("\n") + "\n\n"
        text += "".join(_image(figure, figures) for figure in _figures_of([section], figures, (CASES,)))
        between = sentence(section.records)
        text += (
            (f"{between}\n\n" if between else "")
            + peak_text(section)
            + losses_text(section)
            + others_text(section)
            + rejections_text(section)
        )
    return text


def losses(section: Section) -> list[Loss]:
    """Every comparison with eager torch or torch.compile that fastdl lost, the worst first."""
    found = []
    for baseline in BASELINES:
        for record, m in _compared(section, baseline):
            ratio = speedup(m, baseline)
            if ratio is not None and ratio < 1:
                bounds = measured(m.times[baseline]) / measured(m.times["ours"])
                found.append(Loss(record, m, baseline, ratio, bounds.high < 1))
    return sorted(found, key=lambda loss: loss.ratio)


def _compared(section: Section, baseline: str) -> list[tuple[CaseRecord, Measurement]]:
    return [(r, m) for r in section.records for m in r.measurements if speedup(m, baseline) is not None]


def losses_text(section: Section) -> str:
    found = losses(section)
    compared = {baseline: len(_compared(section, baseline)) for baseline in BASELINES}
    total = " and ".join(f"{count} with {_named(b)}" for b, count in compared.items() if count)
    if not found:
        return f"Losses: none, in {sum(compared.values())} comparisons ({total}).\n"
    certain = sum(loss.certain for loss in found)
    count = f"{len(found)} of {sum(compared.values())} comparisons ({total})"
    text = f"Losses: {count}, {certain} of them beyond the spread.\n\n"
    rows = [
        [
            loss.record.case.label.replace("x", "×"), LAYOUT_LABELS[loss.record.case.layout], loss.record.case.dtype,
            WORDS["en"][loss.measurement.pass_name], WORDS["en"][loss.measurement.pool or "none"],
            _named(loss.baseline),
            table.seconds(loss.measurement.times["ours"].median),
            table.seconds(loss.measurement.times[loss.baseline].median), f"{loss.ratio:.3f}",
            "" if loss.certain else "within the spread",
        ]
        for loss in found
    ]  # fmt: skip
    return text + markdown_table(LOSS_HEADER, rows, left=6)


def _named(baseline: str) -> str:
    return "eager" if baseline == "eager" else "`torch.compile`"


def others_text(section: Section) -> str:
    """Each other contender that was timed: the geometric mean of its time over fastdl's, and the number of cases."""
    ratios: dict[tuple[str, str], list[float]] = {}
    for record in section.records:
        for pass_name in (FORWARD, FORWARD_BACKWARD):
            m = main_measurement(record, pass_name)
            for name in m.times if m is not None else ():
                ratio = None if is_ours(name) or name in BASELINES or m is None else speedup(m, name)
                if ratio is not None:
                    ratios.setdefault((name, pass_name), []).append(ratio)
    if not ratios:
        return ""
    rows = [
        [name, WORDS["en"][pass_name], str(len(found)), table.ratio(geometric_mean(found)), table.ratio(min(found))]
        for (name, pass_name), found in ratios.items()
    ]
    header = ("other contender", "pass", "cases", "its time / fastdl's", "least")
    return "\n" + markdown_table(header, rows, left=2)


def rejections_text(section: Section) -> str:
    """What was not timed, each with its reason, and in how many cases."""
    counts: dict[tuple[str, str], list[str]] = {}
    for record in section.records:
        for name, reason in record.rejected.items():
            kind = reason.partition(" is off by")[0]
            counts.setdefault((name, kind), []).append(record.case.key)
    if not counts:
        return ""
    lines = [f"- {name}, {kind}: {', '.join(keys)}" for (name, kind), keys in counts.items()]
    return "\nNot timed:\n\n" + "\n".join(lines) + "\n"


def neighbours_part(neighbours: Sequence[tuple[dict[str, Any], dict[str, Any]]]) -> str:
    """What torch takes for the neighbours of an op, beside the most that fusing them could bring."""
    if not neighbours:
        return ""
    text = (
        "\n## Neighbours\n\nWhat stands beside an op in a network, as torch composes it, and beside it what fusing it "
        "brings, or could bring at most: bias and GELU behind a linear layer, dropout before a residual and a norm, "
        "and torch's own `linear_cross_entropy`. A ratio is torch's time over the one before it.\n"
    )
    for described, run in neighbours:
        commit = f", {run['commit'][:12]}" if run["commit"] else ""
        text += f"\n{described['name']}, {run['threads']} threads; torch {run['versions']['torch']}, "
        text += f"{run['date'][:10]}{commit}.\n\n"
        rows, width = [], max(len(times) for passes in run["times"].values() for times in passes.values())
        for problem, passes in run["times"].items():
            for pass_name, times in passes.items():
                (one, first), *others = times.items()
                cells = [problem.replace("x", "×"), WORDS["en"][pass_name], f"{one}: {table.seconds(first['median'])}"]
                for other, spread in others:
                    gain = table.ratio(first["median"] / spread["median"])
                    cells += [f"{other}: {table.seconds(spread['median'])}", gain]
                rows.append([*cells, *[table.ABSENT] * (1 + 2 * width - len(cells))])
        beside = [word for _ in range(width - 1) for word in ("beside it", "ratio")]
        text += markdown_table(("neighbours", "pass", "as torch has it", *beside), rows, left=3)
    return text


def _figures_of(group: Sequence[Section], figures: Sequence[Figure], kinds: Sequence[str]) -> list[Figure]:
    """The pictures of one machine of these kinds; of an op where there is one section."""
    names = {figure.name for figure in make_figures(group) if figure.kind in kinds}
    return sorted((f for f in figures if f.name in names), key=lambda figure: kinds.index(figure.kind))


def _image(figure: Figure, figures: Sequence[Figure]) -> str:
    png, svg = figure.files
    return f"![{figure.title}]({IMAGES}/{png}) ([SVG]({IMAGES}/{svg}))\n\n"


__all__ = ["IMAGES", "Loss", "losses", "page"]
