"""Made-up results of two experiments, for the tests of reports."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from fastdl.experiments.claims import Arm, Claim, Difference, Equivalence, Trend, claim_to_dict
from fastdl.experiments.definition import ExperimentDefinition, Factor, Figure, Protocol

SIZES = (2, 8, 32)


def text(en: str, ko: str) -> dict[str, str]:
    return {"en": en, "ko": ko}


def no_arms(*_: Any) -> Any:
    raise AssertionError("a report makes no runs")


NORM = Factor("norm", text("norm", "정규화"), {name: text(name.title(), name.title()) for name in ("batch", "group")})
CLAIMS: tuple[Claim, ...] = (
    Difference("ahead", text("Group is ahead at 2", "크기 2에서 Group이 앞선다"), ("group", 2), ("batch", 2), 0.03),
    Difference("behind", text("Batch is ahead at 2", "크기 2에서 Batch가 앞선다"), ("batch", 2), ("group", 2)),
    Equivalence("equal", text("Equal at 32", "크기 32에서 같다"), ("group", 32), ("batch", 32), 0.001),
    Trend("rises", text("Batch rises", "Batch는 오른다"), tuple(("batch", n) for n in SIZES), SIZES, rises=True),
)
TWO_FACTORS = ExperimentDefinition(
    name="norms",
    title=text("Norms <by> size", "크기에 따른 <정규화>"),
    question=text("Does a norm need large batches?", "정규화에는 큰 배치가 필요한가?"),
    options=object,
    factors=(NORM, Factor("batch_size", text("batch size", "배치 크기"))),
    protocols={name: Protocol(data, 1, 2, 0.1, 3, {}, {}) for name, data in (("smoke", "digits"), ("full", "cifar10"))},
    arms=no_arms,
    configure=no_arms,
    varies=(),
    claims=no_arms,
    published={("batch", 2): 0.423, ("group", 2): 0.648, ("batch", 32): 0.7},
    source=text("a course", "어느 강의"),
    figures=(
        Figure("by_size", "batch_size", text("Accuracy by size", "크기별 정확도"), lines="norm", logarithmic=True),
    ),
)
ONE_FACTOR = replace(
    TWO_FACTORS,
    name="orders",
    factors=(Factor("block", text("block", "블록"), {"a": text("Conv-BN-ReLU", "합성곱-BN-ReLU")}),),
    published={("a",): 0.85},
    figures=(Figure("by_block", "block", text("Accuracy by block", "블록별 정확도")),),
)
FIGURES = {"gradients_by_block", "saturation_by_block", "batch_noise", "modes", "learning_curves", "by_size"}


def run_of(definition: ExperimentDefinition, arm: Arm, seed: int, accuracy: float | None, depth: int) -> dict[str, Any]:
    """A run as the runner writes it, with all the evidence there is; diverged without an accuracy."""
    random = np.random.default_rng([seed, *map(ord, str(arm))])
    size = arm[-1] if isinstance(arm[-1], int) else 32
    epochs = 6 if accuracy is not None else 2
    rise = [(accuracy or 0.2) * (1 - math.exp(-(epoch + 1))) for epoch in range(epochs)]
    rows = [
        {
            "step": 10 * look,
            "epoch": look / 2,
            "gradient_norms": [10.0 ** (block - depth) * random.uniform(0.5, 2) / (look + 1) for block in range(depth)],
            "saturation": [None if arm[0] == "group" else 0.1 * look * random.uniform(0.8, 1) for _ in range(depth)],
        }
        for look in range(5)
    ]
    noise = [random.uniform(0.7, 1.3) / math.sqrt(size) for _ in range(depth)]
    return {
        **definition.factors_of(arm),
        "seed": seed,
        "directory": f"runs/{'_'.join(map(str, arm))}_seed-{seed}",
        "status": "diverged" if accuracy is None else "finished",
        "steps": 60 if accuracy is not None else 20,
        "parameters": 1000,
        "history": [{"epoch": epoch, "step": 10, "validation_accuracy": value} for epoch, value in enumerate(rise)],
        "test_accuracy": accuracy,
        "seconds": 12.5,
        "environment": {"versions": {"torch": "2.11"}, "threads": 2},
        "config": {},
        "speed": {"images_per_second": 4321.0, "fused_share": 0.5 if seed == 0 else None},
        "evidence": {
            "gradients": rows,
            "batch_statistics": {"batch_size": size, "mean_noise": noise, "variance_noise": [1.4 * n for n in noise]},
            "modes": {"training_mode_accuracy": 0.8 - 0.3 / size, "evaluation_mode_accuracy": 0.8 - seed / 100 / size},
        },
    }


def content_of(
    definition: ExperimentDefinition, values: dict[Arm, Sequence[float | None]], claims: Sequence[Claim], depth: int = 4
) -> dict[str, Any]:
    """What ``results.json`` holds for test accuracies by arm, in the order of their seeds from 0 on."""
    runs = [run_of(definition, arm, seed, x, depth) for arm, found in values.items() for seed, x in enumerate(found)]
    seeds = list(range(max(map(len, values.values()))))
    return {
        "experiment": definition.name,
        "protocol": "smoke",
        "complete": True,
        "planned": len(runs),
        "command": f"fastdl experiment {definition.name} --protocol smoke",
        "commit": "abc123",
        "settings": {"data": {"dataset": "digits"}, "model": {"name": "net", "arguments": {"width": 32}}},
        "arms": [list(arm) for arm in values],
        "seeds": seeds,
        "claims": [claim_to_dict(claim) for claim in claims],
        "classes": 10,
        "environment": {"versions": {"torch": "2.11"}, "machine": "Linux x86_64", "cuda_devices": [], "threads": 2},
        "test_evaluations": {run["directory"][5:]: int(run["test_accuracy"] is not None) for run in runs},
        "failed": [],
        "runs": runs,
    }


def two_factors() -> dict[str, Any]:
    """Group is far ahead at 2, the two are near each other at 32, one run of Batch at 8 diverged."""
    values: dict[Arm, Sequence[float | None]] = {
        ("batch", 2): [0.41, 0.43, 0.42],
        ("group", 2): [0.640, 0.645, 0.648],
        ("batch", 8): [0.67, None, 0.68],
        ("group", 8): [0.69, 0.695, 0.7],
        ("batch", 32): [0.75, 0.77, 0.73],
        ("group", 32): [0.76, 0.73, 0.75],
    }
    return content_of(TWO_FACTORS, values, CLAIMS)


def one_factor() -> dict[str, Any]:
    values: dict[Arm, Sequence[float | None]] = {
        (name,): [0.8 + 0.01 * index, 0.81 + 0.01 * index, None if name == "b" else 0.84]
        for index, name in enumerate("abcde")
    }
    content = content_of(ONE_FACTOR, values, ())
    for run in content["runs"]:
        if run["block"] in "cde":
            del run["evidence"]["gradients"]
    return content
