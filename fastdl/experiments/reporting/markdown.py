"""The text of a report, in Markdown."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence

from fastdl.experiments.markdown_tables import markdown_table
from fastdl.experiments.reporting.load import Results, Run
from fastdl.experiments.reporting.style import Picture
from fastdl.experiments.reporting.tables import (
    accuracy_table,
    code,
    escape,
    flatten,
    settings_table,
    verdict_table,
)
from fastdl.experiments.reporting.words import Phrases
from fastdl.experiments.verdicts import ALPHA, CONTRADICTED, SUPPORTED, UNDECIDED

__all__ = ["render_markdown"]


def render_markdown(results: Results, pictures: Sequence[Picture], language: str, say: Phrases) -> str:
    """Return the whole report in a language; images are named by their file alone."""
    definition = results.definition
    parts = [
        f"# {escape(definition.title[language])}",
        *_notices(results, say),
        f"## {say('question')}",
        escape(definition.question[language]),
        f"## {say('setup')}",
        settings_table(results, language, say),
        f"## {say('verdicts')}",
        *_verdicts(results, language, say),
        f"## {say('accuracies')}",
        *_accuracies(results, language, say),
        *_figures(pictures, say),
        f"## {say('conduct')}",
        *_conduct(results, say),
        f"## {say('reproduction')}",
        *_reproduction(results, say),
        f"## {say('environment')}",
        *_environment(results, say),
    ]
    return "\n\n".join(parts) + "\n"


def _notices(results: Results, say: Phrases) -> list[str]:
    """What a reader must know before anything else, in a quotation each."""
    notices = []
    if not results.complete:
        notices.append(say("incomplete", done=len(results.all_runs), planned=results.planned))
    if not results.all_runs:
        notices.append(say("no_runs"))
    if results.touched_again:
        notices.append(_touched_again(results, say))
    if failed := results.content.get("failed"):
        notices.append(say("failed_notice", count=len(failed)))
    return [f"> **{notice}**" for notice in notices]


def _touched_again(results: Results, say: Phrases) -> str:
    again = results.touched_again
    names = ", ".join(say("times", name=code(name), count=count) for name, count in again.items())
    return say("touched_again", count=len(again), runs=len(results.test_evaluations), names=names)


def _verdicts(results: Results, language: str, say: Phrases) -> list[str]:
    if not results.claims:
        return [say("no_claims")]
    outcomes = Counter(verdict.outcome for verdict in results.verdicts)
    counts = {outcome: outcomes[outcome] for outcome in (SUPPORTED, CONTRADICTED, UNDECIDED)}
    return [
        say("verdict_counts", total=len(results.claims), **counts),
        verdict_table(results, language, say),
        say("verdict_note", alpha=ALPHA),
    ]


def _accuracies(results: Results, language: str, say: Phrases) -> list[str]:
    definition = results.definition
    parts = [accuracy_table(results, language, say)]
    if results.chance is not None:
        parts.append(say("chance", classes=results.content["classes"], chance=f"{100 * results.chance:.3g}"))
    if any(arm in definition.published for arm in results.arms):
        parts.append(say("source", source=escape(definition.source[language])))
        dataset = ((results.content.get("settings") or {}).get("data") or {}).get("dataset")
        whole = definition.protocols["full"].dataset if "full" in definition.protocols else dataset
        if dataset is not None and dataset != whole:
            parts.append(say("other_data", dataset=code(dataset), published=code(whole)))
    return parts


def _figures(pictures: Sequence[Picture], say: Phrases) -> list[str]:
    if not pictures:
        return []
    parts = [f"## {say('figures')}"]
    for picture in pictures:
        title, caption = escape(picture.title), escape(picture.caption)
        image = f"![{title}]({picture.png.name})"
        parts += [f"### {title}", image, f"{caption} ([SVG]({picture.svg.name}))"]
    return parts


def _conduct(results: Results, say: Phrases) -> list[str]:
    parts = []
    touches = results.test_evaluations
    if not touches:
        parts.append(say("untold"))
    elif results.touched_again:
        parts.append(f"{_touched_again(results, say)} {say('touched_total', total=sum(touches.values()))}")
    else:
        parts.append(say("touched_once", total=sum(touches.values())))
    diverged = [say("after_steps", name=_name(run), steps=run.get("steps", "?")) for run in results.diverged]
    parts.append(say("diverged_runs", names=", ".join(diverged)) if diverged else say("none_diverged"))
    failed = results.content.get("failed") or []
    if failed:
        rows = [f"- {code(failure['run'])}: {escape(str(failure['error']))}" for failure in failed]
        parts += [say("failed_runs"), "\n".join(rows)]
    else:
        parts.append(say("none_failed"))
    return parts


def _name(run: Run) -> str:
    return code(str(run.get("directory", "?")).removeprefix("runs/"))


def _reproduction(results: Results, say: Phrases) -> list[str]:
    name, commit = results.definition.name, results.content.get("commit")
    command = " ".join(str(results.content.get("command") or f"fastdl experiment {name}").split())
    parts = [say("command"), f"```sh\n{command}\n```"]
    if commit:
        text = say("commit", commit=str(commit).removesuffix("-dirty").replace("`", "'"))
        parts.append(f"{text} {say('dirty')}" if str(commit).endswith("-dirty") else text)
    else:
        parts.append(say("no_commit"))
    parts.append(say("report_command", command=f"fastdl report {name}"))
    return parts


def _environment(results: Results, say: Phrases) -> list[str]:
    environment = flatten(results.content.get("environment") or {})
    rows = [[code(name.removeprefix("versions.")), _shown(value)] for name, value in environment.items()]
    parts = [markdown_table([say("item"), say("value")], rows)] if rows else []
    made = [flatten(run["environment"]) for run in results.all_runs if run.get("environment")]
    distinct = {json.dumps(one, sort_keys=True) for one in made}
    if len(distinct) > 1:
        names = sorted({name for one in made for name in one})
        differing = [name for name in names if len({json.dumps(one.get(name)) for one in made}) > 1]
        parts.append(say("environments", count=len(distinct), names=", ".join(map(code, differing))))
    return parts


def _shown(value: object) -> str:
    if isinstance(value, list):
        return ", ".join(code(part) for part in value) or "–"
    return code(value)
