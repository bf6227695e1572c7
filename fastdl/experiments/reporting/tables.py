"""The tables of a report: settings, verdicts, accuracies."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from fastdl.experiments.claims import Arm, Claim, Difference, Equivalence, Trend, contrasts
from fastdl.experiments.markdown_tables import markdown_table
from fastdl.experiments.reporting.load import Results, Run, accuracy
from fastdl.experiments.reporting.words import Phrases
from fastdl.experiments.statistics import Estimate
from fastdl.experiments.verdicts import ALPHA, UNDECIDED, Verdict

__all__ = ["accuracy_table", "code", "escape", "flatten", "settings_table", "verdict_table"]

NOTHING = "–"


def escape(text: str) -> str:
    """Text as Markdown and HTML show it literally, in one line."""
    for character in "\\`*_[]|":
        text = text.replace(character, f"\\{character}")
    return " ".join(text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").split())


def code(text: Any) -> str:
    """A name or value set as code, in one line."""
    # A backtick would end the code, and a pipe the cell.
    return "`" + " ".join(str(text).replace("`", "'").replace("|", "¦").split()) + "`"


def flatten(content: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Values of nested mappings by their path, as ``arguments.depth``."""
    found: dict[str, Any] = {}
    for name, value in content.items():
        if isinstance(value, Mapping):
            found |= flatten(value, f"{prefix}{name}.")
        else:
            found[prefix + name] = value
    return found


def settings_table(results: Results, language: str, say: Phrases) -> str:
    """What was run: protocol, arms, seeds, and the settings that all runs share."""
    describe = results.definition.describe
    settings = dict(results.content.get("settings") or {})
    rows = [
        [say("protocol"), code(results.content.get("protocol", NOTHING))],
        [say("arms"), "; ".join(escape(describe(arm, language)) for arm in results.arms) or NOTHING],
        [say("seeds"), ", ".join(map(str, results.seeds)) or NOTHING],
        [say("runs"), say("runs_of", done=len(results.all_runs), planned=results.planned)],
    ]
    rows += [[say(part), _settings(settings.pop(part, {}))] for part in ("data", "model", "optimizer", "training")]
    if settings:
        rows.append([say("other"), _settings(settings)])
    return markdown_table([say("item"), say("value")], rows)


def _settings(part: Any) -> str:
    values = flatten(part) if isinstance(part, Mapping) else {"": part}
    # The fingerprint tells files apart, not experiments, and is in results.json.
    shown = [f"{name} {_setting(value)}".strip() for name, value in values.items() if name != "fingerprint"]
    return ", ".join(code(text) for text in shown) or NOTHING


def _setting(value: Any) -> str:
    known = {True: "on", False: "off", None: "none"}
    return known[value] if value is None or isinstance(value, bool) else str(value)


def verdict_table(results: Results, language: str, say: Phrases) -> str:
    """Each claim with its verdict, and what it rests on; contrasts in percentage points."""
    header = ["claim", "verdict", "contrast", "criterion", "adjusted_p", "effect", "pairs", "remarks"]
    rows = [_verdict_row(results, verdict, language, say) for verdict in results.verdicts]
    return markdown_table([say(name) for name in header], rows)


def _verdict_row(results: Results, verdict: Verdict, language: str, say: Phrases) -> list[str]:
    return [
        escape(verdict.claim.text[language]),
        f"**{say(verdict.outcome)}**",
        _contrast(verdict.contrast),
        _criterion(results, verdict.claim, language, say),
        p_value(verdict.adjusted_p_value),
        NOTHING if verdict.effect_size is None else f"{verdict.effect_size:+.2f}",
        str(verdict.contrast.count),
        "; ".join(_remarks(results, verdict, say)) or NOTHING,
    ]


def _contrast(contrast: Estimate) -> str:
    if contrast.mean is None:
        return NOTHING
    mean = 100 * contrast.mean
    if contrast.half_width is None:
        return f"{mean:+.2f}"
    width = 100 * contrast.half_width
    return f"{mean:+.2f} [{mean - width:+.2f}, {mean + width:+.2f}]"


def _criterion(results: Results, claim: Claim, language: str, say: Phrases) -> str:
    if isinstance(claim, Difference):
        return say("above", margin=f"{100 * claim.margin:+.2f}" if claim.margin else "0")
    if isinstance(claim, Equivalence):
        margin = 100 * claim.margin
        return say("within", low=f"{-margin:+.2f}", high=f"{margin:+.2f}")
    return say("rises" if claim.rises else "falls", label=escape(_along(results, claim, language)))


def _along(results: Results, claim: Trend, language: str) -> str:
    """In what the arms of a trend differ."""
    levels = zip(results.definition.factors, zip(*claim.arms, strict=True), strict=True)
    return ", ".join(factor.label[language] for factor, values in levels if len(set(values)) > 1)


def p_value(value: float | None) -> str:
    """A p-value with three decimals, or as many as tell it from the level of the test."""
    if value is None:
        return NOTHING
    if value < 0.001:
        return "< 0.001"
    decimals = 3
    while value != ALPHA and round(value, decimals) == ALPHA and decimals < 12:
        decimals += 1
    return f"{value:.{decimals}f}"


def _remarks(results: Results, verdict: Verdict, say: Phrases) -> list[str]:
    remarks = []
    if verdict.reason:
        few = verdict.contrast.count < 2
        remarks.append(say("too_few", count=verdict.contrast.count) if few else say("no_variation"))
    if verdict.outcome == UNDECIDED and verdict.seeds_needed is not None:
        remarks.append(say("seeds_needed", count=verdict.seeds_needed))
    measured = {arm: {seed: accuracy(run) for seed, run in results.runs[arm].items()} for arm in results.arms}
    missing = sorted(set(results.seeds) - contrasts(verdict.claim, measured).keys())
    if missing:
        remarks.append(say("missing", seeds=", ".join(map(str, missing))))
    return remarks


def accuracy_table(results: Results, language: str, say: Phrases) -> str:
    """The accuracies of each arm beside the published ones, with what training took."""
    columns = ["arm", "ours", "diverged"]
    published = any(arm in results.definition.published for arm in results.arms)
    columns += ["published", "less_published"] if published else []
    columns += ["seconds", "speed"]
    fused = any(_speeds(results.runs[arm].values(), "fused_share") for arm in results.arms)
    columns += ["fused"] if fused else []
    rows = []
    for arm in results.arms:
        cells = _accuracy_cells(results, arm, language, say)
        rows.append([cells[column] for column in columns])
    return markdown_table([say(column) for column in columns], rows)


def _accuracy_cells(results: Results, arm: Arm, language: str, say: Phrases) -> dict[str, str]:
    found, published = results.accuracy(arm), results.definition.published.get(arm)
    runs = list(results.runs[arm].values())
    seconds = [run["seconds"] for run in runs if run["status"] != "diverged" and run.get("seconds") is not None]
    speeds, shares = _speeds(runs, "images_per_second"), _speeds(runs, "fused_share")
    difference = None if published is None or found.mean is None else 100 * (found.mean - published)
    return {
        "arm": escape(results.definition.describe(arm, language)),
        "ours": format_accuracy(found, say),
        "diverged": str(results.count_diverged(arm)),
        "published": NOTHING if published is None else f"{100 * published:.1f}",
        "less_published": NOTHING if difference is None else f"{difference:+.1f}",
        "seconds": f"{statistics.fmean(seconds):,.1f}" if seconds else NOTHING,
        "speed": f"{statistics.fmean(speeds):,.0f}" if speeds else NOTHING,
        "fused": f"{100 * statistics.fmean(shares):.0f}" if shares else NOTHING,
    }


def format_accuracy(found: Estimate, say: Phrases) -> str:
    """A fraction in per cent with its interval, without what one run alone does not tell."""
    if found.mean is None:
        return NOTHING
    mean = f"{100 * found.mean:.2f}"
    if found.half_width is None or found.deviation is None:
        return f"{mean} {say('single', count=found.count)}"
    spread = say("spread", deviation=f"{100 * found.deviation:.2f}", count=found.count)
    return f"{mean} ± {100 * found.half_width:.2f} {spread}"


def _speeds(runs: Sequence[Run] | Any, name: str) -> list[float]:
    found = [(run.get("speed") or {}).get(name) for run in runs if run["status"] != "diverged"]
    return [value for value in found if value is not None]
