"""Batch norm or group norm by the size of a batch (Wu and He 2018, Group Normalization, arXiv:1803.08494)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from fastdl.experiments.claims import Arm, Claim, Difference, Equivalence
from fastdl.experiments.definition import ExperimentDefinition, Factor, Figure, Protocol
from fastdl.experiments.networks import block_network_config
from fastdl.experiments.options import CommonOptions, IntegerList, protocol_of
from fastdl.training.config import RunConfig

__all__ = ["DEFINITION", "NORMS", "Options", "run"]

NORMS = ("batch", "group")
RULES = ("linear", "fixed")
REFERENCE_BATCH = 32
"""The batch size at which both rules give the same learning rate, and from which on the two norms should agree."""
MARGIN = 0.03


@dataclass(frozen=True)
class Options(CommonOptions):
    """Compare batch norm and group norm in conv-norm-ReLU networks for several batch sizes, over several seeds."""

    batch_sizes: IntegerList | None = None
    """Examples of a step, each 2 or more."""
    schedule: Literal["base", "many_epochs"] = "base"
    """many_epochs trains as long in comparison as the GroupNorm paper does."""
    learning_rate_rules: tuple[Literal["linear", "fixed"], ...] | None = None
    """linear: in proportion to the batch size (Goyal et al. 2017); fixed: the same for all."""
    learning_rate: float | None = None
    """Of stochastic gradient descent at its peak, for a batch of 32."""


def arms(options: Options) -> tuple[Arm, ...]:
    """Both norms for each rule and size."""
    if options.batch_size is not None and options.batch_size != REFERENCE_BATCH:
        raise ValueError(
            f"this experiment takes batch_sizes in place of batch_size, got batch_size={options.batch_size}"
        )
    if not options.batch_sizes or min(options.batch_sizes) < 2:
        raise ValueError(f"batch_sizes must be 2 or more, got {','.join(map(str, options.batch_sizes or ()))}")
    return tuple(
        (norm, rule, size)
        for rule in options.learning_rate_rules or ()
        for size in sorted(options.batch_sizes, reverse=True)
        for norm in NORMS
    )


def configure(options: Options, fingerprint: str, arm: Arm, seed: int) -> RunConfig:
    """The norm is the only thing in which the two arms of a rule and a size differ."""
    norm, rule, size = arm
    model = dict(protocol_of(options, DEFINITION)[1].model)
    groups = model.pop("num_groups")
    assert options.learning_rate is not None
    rate = options.learning_rate * (float(size) / REFERENCE_BATCH if rule == "linear" else 1.0)
    arguments = {**model, "norm": norm, **({"num_groups": groups} if norm == "group" else {})}
    return block_network_config(options, fingerprint, arguments, seed, batch_size=int(size), learning_rate=rate)


def claims(arms: Sequence[Arm]) -> tuple[Claim, ...]:
    """From a batch of 32 on the two agree within 3 points; below, batch norm loses more than that, group norm does not.

    About the linear rule, which is that of the paper, where it is among the arms.
    """
    rules = {rule for _, rule, _ in arms}
    rule = "linear" if "linear" in rules else "fixed"
    sizes = sorted({int(size) for _, its_rule, size in arms if its_rule == rule})
    made: list[Claim] = [
        Equivalence(
            f"equal_at_{size}",
            {
                "en": f"With batches of {size}, the two norms are within 3 points",
                "ko": f"배치 크기 {size}에서 두 정규화의 차이는 3%p 이내이다",
            },
            ("group", rule, size), ("batch", rule, size), MARGIN,
        )
        for size in sizes
        if size >= REFERENCE_BATCH
    ]  # fmt: skip
    if REFERENCE_BATCH in sizes:
        for size in [size for size in sizes if size in (2, 8)]:
            made += [
                Difference(
                    f"batch_norm_drops_at_{size}",
                    {
                        "en": f"From batches of 32 to batches of {size}, BatchNorm loses more than 3 points",
                        "ko": f"배치 크기를 32에서 {size}로 줄이면 BatchNorm은 3%p 넘게 떨어진다",
                    },
                    ("batch", rule, REFERENCE_BATCH), ("batch", rule, size), MARGIN,
                ),
                Difference(
                    f"group_norm_holds_at_{size}",
                    {
                        "en": f"From batches of 32 to batches of {size}, GroupNorm loses less than 3 points",
                        "ko": f"배치 크기를 32에서 {size}로 줄여도 GroupNorm은 3%p 넘게 떨어지지 않는다",
                    },
                    ("group", rule, size), ("group", rule, REFERENCE_BATCH), -MARGIN,
                ),
            ]  # fmt: skip
    if 2 in sizes:
        made.append(
            Difference(
                "group_norm_ahead_at_2",
                {
                    "en": "With batches of 2, GroupNorm is more than 3 points ahead of BatchNorm",
                    "ko": "배치 크기 2에서 GroupNorm이 BatchNorm보다 3%p 넘게 정확하다",
                },
                ("group", rule, 2), ("batch", rule, 2), MARGIN,
            )
        )  # fmt: skip
    return tuple(made)


DEFINITION = ExperimentDefinition(
    name="batchnorm_vs_groupnorm",
    title={"en": "BatchNorm against GroupNorm by batch size", "ko": "배치 크기에 따른 BatchNorm과 GroupNorm 비교"},
    question={
        "en": "Does batch normalisation need large batches, and does group normalisation not? Networks of blocks of "
        "convolution, norm and ReLU are trained with batches of 2 to 128 images; both norms of a pair begin with the "
        "same weights and see the same images in the same order.",
        "ko": "배치 정규화에는 큰 배치가 필요하고 그룹 정규화에는 필요하지 않은가? 합성곱, 정규화, ReLU 블록으로 된 "
        "신경망을 배치 크기 2에서 128까지 학습한다. 한 쌍의 두 신경망은 같은 가중치에서 시작해 같은 이미지를 같은 "
        "순서로 본다.",
    },
    options=Options,
    factors=(
        Factor(
            "norm",
            {"en": "norm", "ko": "정규화"},
            {"batch": {"en": "BatchNorm", "ko": "BatchNorm"}, "group": {"en": "GroupNorm", "ko": "GroupNorm"}},
        ),
        Factor(
            "learning_rate_rule",
            {"en": "learning rate", "ko": "학습률"},
            {
                "linear": {"en": "learning rate by batch size", "ko": "배치 크기에 비례하는 학습률"},
                "fixed": {"en": "fixed learning rate", "ko": "고정 학습률"},
            },
        ),
        Factor("batch_size", {"en": "batch size", "ko": "배치 크기"}),
    ),
    protocols={
        "smoke": Protocol(
            "digits", epochs=3, batch_size=32, learning_rate=0.3, seeds=3,
            model={"width": 32, "stride": 1, "depth": 2, "num_groups": 8},
            levels={"batch_sizes": (2, 8, 32, 64), "learning_rate_rules": ("linear",)},
            train_examples=640, many_epochs=10,
        ),
        "cpu": Protocol(
            "cifar100", epochs=6, batch_size=32, learning_rate=0.05, seeds=5,
            model={"width": 64, "stride": 2, "depth": 4, "num_groups": 32, "downsamplings": 2, "pool": 2},
            levels={"batch_sizes": (2, 4, 8, 16, 32, 64, 128), "learning_rate_rules": ("linear",)},
            train_examples=10_000, many_epochs=20,
        ),
        "full": Protocol(
            "cifar100", epochs=60, batch_size=32, learning_rate=0.05, seeds=5,
            model={"width": 256, "stride": 1, "depth": 8, "num_groups": 32, "downsamplings": 3, "pool": 1},
            levels={"batch_sizes": (2, 4, 8, 16, 32, 64, 128), "learning_rate_rules": ("linear", "fixed")},
            threads=None, precision="bf16-mixed", many_epochs=200,
        ),
    },
    arms=arms,
    configure=configure,
    varies=(
        "model.arguments.norm", "model.arguments.num_groups", "training.batch_size", "optimizer.learning_rate",
    ),
    claims=claims,
    published={
        ("batch", "linear", 2): 0.423, ("batch", "linear", 8): 0.701, ("batch", "linear", 64): 0.758,
        ("batch", "linear", 128): 0.762, ("group", "linear", 2): 0.648, ("group", "linear", 8): 0.695,
        ("group", "linear", 64): 0.761, ("group", "linear", 128): 0.764,
    },
    source={
        "en": "A published course experiment on CIFAR-100 with one run an arm; its rule for the learning rate is not "
        "known, and is shown beside the linear one. It follows Wu and He 2018 (arXiv:1803.08494), figure 1.",
        "ko": "CIFAR-100으로 조건마다 한 번씩 실행해 공개된 강의 실험이다. 학습률 규칙이 알려져 있지 않아 비례 규칙 "
        "옆에 적는다. Wu와 He의 2018년 논문(arXiv:1803.08494) 그림 1을 따른 실험이다.",
    },
    figures=(
        Figure(
            "accuracy_by_batch_size", along="batch_size", lines="norm", logarithmic=True,
            title={"en": "Test accuracy by batch size", "ko": "배치 크기에 따른 테스트 정확도"},
        ),
    ),
    evidence=("batch_statistics", "modes"),
)  # fmt: skip


def run(options: Options) -> Path:
    """Run the experiment and return the folder of the results; see `fastdl.experiments.conduct.conduct`."""
    from fastdl.experiments.conduct import conduct

    return conduct(DEFINITION, options)
