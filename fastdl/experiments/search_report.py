"""What a search for learning rates found, as ``best.json`` and as a table."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from fastdl.data.files import atomic_write, write_json
from fastdl.experiments.definition import ExperimentDefinition
from fastdl.experiments.search_studies import FIRST_SEARCH_SEED, ArmStudy, Plan, has_diverged

__all__ = ["is_at_edge", "write_search"]

_EDGE = 0.1  # share of the range, by its logarithm, at either end


def write_search(plan: Plan, studies: Sequence[ArmStudy]) -> dict[str, Any]:
    """Write ``best.json`` and ``search.md``, and return what the former holds."""
    settings = json.dumps([plan.settings(study.arm) for study in studies], sort_keys=True)
    content = {
        "experiment": plan.definition.name,
        "protocol": getattr(plan.options, "protocol", None),
        "complete": all(study.done >= plan.trials for study in studies),
        "trials": plan.trials,
        "range": [plan.low, plan.high],
        "seed": plan.seed,
        "settings_fingerprint": hashlib.sha256(settings.encode()).hexdigest(),
        "arms": [_summarize(plan, study) for study in studies],
    }
    write_json(plan.folder / "best.json", content)
    with atomic_write(plan.folder / "search.md") as file:
        file.write(_table(plan.definition, content).encode())
    return content


def _summarize(plan: Plan, arm_study: ArmStudy) -> dict[str, Any]:
    finished, best = arm_study.finished(), arm_study.best
    rate = None if best is None else best.params["learning_rate"]
    return {
        "arm": list(arm_study.arm),
        "learning_rate": rate,
        "validation_accuracy": None if best is None else best.value,
        "trials": len(finished),
        "pruned": sum(trial.state.name == "PRUNED" for trial in finished),
        "diverged": sum(has_diverged(trial) for trial in finished),
        "at_edge": rate is not None and is_at_edge(rate, plan.low, plan.high),
    }


def is_at_edge(rate: float, low: float, high: float) -> bool:
    """Whether a better learning rate may lie beyond the range."""
    place = math.log(rate / low) / math.log(high / low)
    return not _EDGE <= place <= 1 - _EDGE


def _table(definition: ExperimentDefinition, content: Mapping[str, Any]) -> str:
    low, high = content["range"]
    method = (
        f"The best of {content['trials']} learning rates between {low:g} and {high:g} for each arm, by the accuracy on "
        f"the validation split at the end of training with seed {FIRST_SEARCH_SEED + content['seed']}. The test split "
        "was not looked at."
    )
    lines = [
        f"# Learning rates of {definition.title['en']}",
        "",
        method,
        "",
        *([] if content["complete"] else ["The search is not finished.", ""]),
        "| Arm | Learning rate | Validation accuracy | Trials | Pruned | Diverged | Remark |",
        "|---|---:|---:|---:|---:|---:|---|",
    ]
    for row in content["arms"]:
        rate, accuracy = row["learning_rate"], row["validation_accuracy"]
        cells = [
            definition.describe(tuple(row["arm"]), "en"),
            "-" if rate is None else f"{rate:.4g}",
            "-" if accuracy is None else f"{accuracy:.4f}",
            *(str(row[name]) for name in ("trials", "pruned", "diverged")),
            "at the edge of the range: a better one may lie beyond" if row["at_edge"] else "",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"
