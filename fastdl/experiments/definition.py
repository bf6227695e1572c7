"""What a controlled experiment is, as data: its factors, its claims, its protocols, and what was published about it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fastdl.experiments.claims import Arm, Claim
from fastdl.training.config import RunConfig

__all__ = ["LANGUAGES", "PROTOCOLS", "ExperimentDefinition", "Factor", "Figure", "Protocol", "Text"]

LANGUAGES = ("en", "ko")
"""Languages of the reports."""

PROTOCOLS = ("smoke", "cpu", "full")
"""Protocols that every experiment has: the embedded digits in under a minute, real images on two CPU cores in under an
hour, and the whole experiment on a GPU."""

Text = Mapping[str, str]
"""What is said, by language."""


@dataclass(frozen=True)
class Factor:
    """Something in which arms differ.

    Attributes:
        name: key in the results, as ``depth``.
        label: its name for people.
        levels: names of its levels for people; a level that is missing is shown as it is, as numbers are.
    """

    name: str
    label: Text
    levels: Mapping[str, Text] = field(default_factory=dict)


@dataclass(frozen=True)
class Figure:
    """How the accuracies are drawn: a line for each level of ``lines`` along the levels of ``along``.

    Attributes:
        name: of the file, without suffix.
        along: name of the factor on the x-axis.
        lines: name of the factor that the lines stand for; None where there is one factor alone, whose levels then
            stand side by side without a line, since they have no order.
        logarithmic: whether the levels of ``along`` double.
        title: of the figure.
    """

    name: str
    along: str
    title: Text
    lines: str | None = None
    logarithmic: bool = False


@dataclass(frozen=True)
class Protocol:
    """How large an experiment is run. What the command line can set, too, stands here as its default.

    Attributes:
        dataset: a name that :func:`fastdl.data.load_dataset` knows.
        epochs: passes over the training examples.
        batch_size: examples of a step.
        learning_rate: at its peak; where it depends on the batch size, that of 32 examples.
        seeds: how many.
        model: arguments of the network that no factor decides.
        levels: of each factor that the command line can set.
        train_examples: use only so many of the training examples; None uses all.
        threads: CPU threads of a run. One thread gives the same sums on a machine with any number of cores, and several
            runs side by side use the others better than one run does.
        jobs: runs at the same time; None is one for each core.
        precision: Lightning's name.
        many_epochs: passes in place of ``epochs`` where an experiment has a long schedule.
    """

    dataset: str
    epochs: int
    batch_size: int
    learning_rate: float
    seeds: int
    model: Mapping[str, Any]
    levels: Mapping[str, tuple[Any, ...]]
    train_examples: int | None = None
    threads: int | None = 1
    jobs: int | None = None
    precision: str = "32-true"
    many_epochs: int | None = None


@dataclass(frozen=True)
class ExperimentDefinition:
    """An experiment: all that is decided before its first run.

    Attributes:
        name: of the command and the results.
        title, question: for the report.
        options: dataclass of the command line, a `fastdl.experiments.options.CommonOptions`.
        factors: in the order in which an arm names their levels.
        protocols: by name, one for each of `PROTOCOLS`.
        arms: of options that are complete, in the order in which they are run and shown.
        configure: the complete configuration of one run: of options that are complete, the fingerprint of the data
            set, an arm and a seed.
        varies: what the factors decide in a configuration, as ``model.arguments.depth``; all else is common.
        claims: that can be made about these arms.
        published: test accuracies of others by arm, as fractions.
        source: where these are from.
        figures: to draw.
        evidence: what is measured of each run beside its accuracy, see `fastdl.training.evidence`.
    """

    name: str
    title: Text
    question: Text
    options: type[Any]
    factors: tuple[Factor, ...]
    protocols: Mapping[str, Protocol]
    arms: Callable[[Any], tuple[Arm, ...]]
    configure: Callable[[Any, str, Arm, int], RunConfig]
    varies: tuple[str, ...]
    claims: Callable[[Sequence[Arm]], tuple[Claim, ...]]
    published: Mapping[Arm, float]
    source: Text
    figures: tuple[Figure, ...]
    evidence: tuple[str, ...] = ()

    def factors_of(self, arm: Arm) -> dict[str, str | int | float]:
        """The levels of an arm by the names of their factors."""
        return dict(zip((factor.name for factor in self.factors), arm, strict=True))

    def describe(self, arm: Arm, language: str) -> str:
        """An arm in words, as ``ReLU, 8 blocks``."""
        parts = []
        for factor, level in zip(self.factors, arm, strict=True):
            known = factor.levels.get(str(level))
            parts.append(known[language] if known else f"{factor.label[language]} {level}")
        return ", ".join(parts)
