"""Sigmoid against ReLU in networks of 1 to 8 blocks of convolution, batch norm and activation, all else equal.

The two arms of a pair share seed, initial weights (drawn per parameter name, so that networks of different depths
share their common blocks, too), order of the data, augmentation, optimizer and schedule. Choices are made on a
validation split that is held out of the training data; the test split is looked at once, at the end of each run.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from fastdl.data import ImageDataset, load_dataset
from fastdl.data.files import atomic_write
from fastdl.experiments.options import IntegerList, Seeds, default_backend, resolve_backend, resolve_device
from fastdl.experiments.report import Series, format_estimate, markdown_table, plot_by
from fastdl.experiments.statistics import Estimate, estimate
from fastdl.training.config import DataConfig, ModelConfig, OptimizerConfig, RunConfig, TrainingConfig
from fastdl.training.environment import describe_environment

if TYPE_CHECKING:
    from fastdl.experiments.runner import Outcome

__all__ = ["ACTIVATIONS", "Options", "run", "run_config", "summarize"]

NAME = "sigmoid_vs_relu"
ACTIVATIONS = ("sigmoid", "relu")
_LABELS = {"sigmoid": "Sigmoid", "relu": "ReLU"}


@dataclass(frozen=True)
class Preset:
    """What depends on the data set; what the command line can set, too, stands here as its default."""

    epochs: int
    batch_size: int
    learning_rate: float
    threads: int | None
    stride: int
    crop_padding: int
    random_flip: bool


# Colour photographs are cropped and mirrored as is customary since He et al. 2015; a mirrored digit is another digit.
# Learning rates are chosen by the validation accuracy that both activations reach on average over three depths with
# seed 100, which no default run uses. Digits, depths 1, 2 and 8: 0.60, 0.71, 0.84, 0.91 and 0.80 at rates of 0.03, 0.1,
# 0.3, 1 and 3. CIFAR-10, 5 epochs of 5,000 images, depths 1, 4 and 8: 0.275, 0.313, 0.333 and 0.338 at 0.03, 0.1, 0.3
# and 1; the last two are equal within the noise of one seed, and at 1 the ReLU network of 8 blocks had begun to lose.
# Digits are trained on one thread: two take 2.5 s in place of 3.7 s for ten epochs of eight blocks, but fifty times as
# long where other processes want the same cores, since they wait for each other after every small operation.
PRESETS = {
    "digits": Preset(10, 64, learning_rate=1.0, threads=1, stride=1, crop_padding=0, random_flip=False),
    "cifar10": Preset(20, 128, learning_rate=0.3, threads=None, stride=2, crop_padding=4, random_flip=True),
    "cifar100": Preset(20, 128, learning_rate=0.3, threads=None, stride=2, crop_padding=4, random_flip=True),
}


@dataclass(frozen=True)
class Options:
    """Compare Sigmoid and ReLU in conv-norm-act networks of several depths, over several seeds."""

    dataset: Literal["digits", "cifar10", "cifar100"] = "digits"
    """Data to train on; the digits come with scikit-learn, the others are looked for and fetched if need be."""
    data_dir: Path | None = None
    """Folder of the data sets; $FASTDL_DATA if it is not given."""
    depths: IntegerList = (1, 2, 4, 8)
    """Numbers of blocks, 1 to 8."""
    seeds: Seeds = (0, 1, 2)
    """How many seeds (3 means 0, 1 and 2), or which ones (as 0,5)."""
    epochs: int | None = None
    """Passes over the training data; 10 for digits, 20 for the others if it is not given."""
    batch_size: int | None = None
    """Examples of a step; 64 for digits, 128 for the others if it is not given."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    backend: str = field(default_factory=default_backend)
    """Kernels of the fused ops: auto, reference, cpu, triton or cuda."""
    output_dir: Path | None = None
    """Folder of the results; runs/sigmoid_vs_relu/<dataset> if it is not given."""
    resume: bool = True
    """Continue what the folder holds; --no-resume moves it aside and starts anew."""
    width: int = 32
    """Channels of every block."""
    learning_rate: float | None = None
    """Of stochastic gradient descent, at its peak; 1.0 for digits, 0.3 for the others if it is not given."""
    threads: int | None = None
    """CPU threads; 1 for digits, torch's choice for the others if it is not given."""
    precision: Literal["32-true", "bf16-mixed", "16-mixed"] = "32-true"
    """Of the training; 16-mixed needs a GPU."""
    gradient_clip_norm: float | None = 5.0
    """Largest norm of the gradient; None does not clip."""
    early_stopping_patience: int | None = None
    """Stop after so many epochs without a better validation accuracy; None trains to the end."""
    train_examples: int | None = None
    """Use only so many training examples."""
    checkpoint_seconds: float = 30.0
    """Write a checkpoint after so many seconds, and at the end of each epoch."""


def run_config(options: Options, fingerprint: str, activation: str, depth: int, seed: int) -> RunConfig:
    """Return the complete configuration of one run.

    Args:
        options: of the experiment.
        fingerprint: of the data set.
        activation: of every block, the only thing in which the two arms differ.
        depth: number of blocks.
        seed: of initial weights, data order and augmentation.
    """
    preset = PRESETS[options.dataset]
    return RunConfig(
        data=DataConfig(
            dataset=options.dataset,
            fingerprint=fingerprint,
            train_examples=options.train_examples,
            crop_padding=preset.crop_padding,
            random_flip=preset.random_flip,
        ),
        model=ModelConfig(
            name="conv_network",
            arguments={
                "activation": activation,
                "depth": depth,
                "width": options.width,
                "stride": preset.stride,
                "norm": "batch",
            },
        ),
        optimizer=OptimizerConfig(learning_rate=_or(options.learning_rate, preset.learning_rate)),
        training=TrainingConfig(
            epochs=_or(options.epochs, preset.epochs),
            batch_size=_or(options.batch_size, preset.batch_size),
            precision=options.precision,
            gradient_clip_norm=options.gradient_clip_norm,
            early_stopping_patience=options.early_stopping_patience,
            device=resolve_device(options.device),
            backend=resolve_backend(options.backend),
            threads=_or(options.threads, preset.threads),
        ),
        seed=seed,
    )


_Value = TypeVar("_Value")


def _or(given: _Value | None, default: _Value) -> _Value:
    return default if given is None else given


def run(options: Options) -> Path:
    """Run the experiment and return the folder with ``results.json``, ``results.md`` and the plots.

    Raises:
        ValueError: an option does not fit, or the folder holds other results.
        DataError: the data is missing or damaged.
    """
    if not options.depths or not all(1 <= depth <= 8 for depth in options.depths):
        raise ValueError(f"depths must be between 1 and 8, got {','.join(map(str, options.depths))}")
    if not options.seeds:
        raise ValueError("seeds must hold at least one seed")
    if options.checkpoint_seconds < 0:
        raise ValueError(f"checkpoint_seconds must be 0 or more, got {options.checkpoint_seconds}")
    folder = options.output_dir or Path("runs") / NAME / options.dataset
    dataset = load_dataset(options.dataset, options.data_dir)

    def config(activation: str, depth: int, seed: int) -> RunConfig:
        return run_config(options, dataset.fingerprint, activation, depth, seed)

    settings = _common_settings(config(ACTIVATIONS[0], options.depths[0], options.seeds[0]))
    # Imported here: it brings Lightning, which takes seconds, and everything above may already have said no.
    from fastdl.experiments.runner import PlannedRun, output_folder, run_grid, write_results
    from fastdl.training import CheckpointPolicy

    plans = [
        PlannedRun({"activation": activation, "depth": depth, "seed": seed}, config(activation, depth, seed))
        for seed in options.seeds
        for depth in options.depths
        for activation in ACTIVATIONS
    ]
    with output_folder(folder, NAME, settings, resume=options.resume):
        _announce(options, dataset, settings, len(plans), folder)
        outcomes: list[Outcome] = []
        for outcomes in run_grid(plans, dataset, folder, CheckpointPolicy(every_seconds=options.checkpoint_seconds)):
            summary = [asdict(row) for row in summarize(outcomes)]
            write_results(folder / "results.json", NAME, settings, outcomes, len(plans), summary=summary)
        _write_report(folder, dataset, settings, outcomes)
    return folder


@dataclass(frozen=True)
class DepthSummary:
    """Test accuracy at one depth: of each activation over the seeds, and of ReLU minus Sigmoid over the pairs."""

    depth: int
    accuracy: dict[str, Estimate]
    diverged: dict[str, int]
    difference: Estimate


def summarize(outcomes: Sequence[Outcome]) -> list[DepthSummary]:
    """Summarise the finished runs by depth; a diverged run is counted, and enters no mean."""
    by_factors = {
        (
            str(outcome.plan.factors["activation"]),
            int(outcome.plan.factors["depth"]),
            int(outcome.plan.factors["seed"]),
        ): (outcome.result.test_accuracy)
        for outcome in outcomes
    }
    rows = []
    for depth in sorted({depth for _, depth, _ in by_factors}):
        values: dict[str, dict[int, float]] = {activation: {} for activation in ACTIVATIONS}
        diverged = dict.fromkeys(ACTIVATIONS, 0)
        for (activation, other_depth, seed), accuracy in by_factors.items():
            if other_depth != depth:
                continue
            if accuracy is None:
                diverged[activation] += 1
            else:
                values[activation][seed] = accuracy
        pairs = sorted(values["relu"].keys() & values["sigmoid"].keys())
        rows.append(
            DepthSummary(
                depth=depth,
                accuracy={activation: estimate(list(values[activation].values())) for activation in ACTIVATIONS},
                diverged=diverged,
                difference=estimate([values["relu"][seed] - values["sigmoid"][seed] for seed in pairs]),
            )
        )
    return rows


def _write_report(folder: Path, dataset: ImageDataset, settings: dict[str, Any], outcomes: Sequence[Outcome]) -> None:
    """Write ``results.md`` and the plot of accuracy by depth, as PNG and SVG."""
    rows = summarize(outcomes)
    chance = 1 / len(dataset.class_names)
    training = settings["training"]
    seeds = sorted({int(outcome.plan.factors["seed"]) for outcome in outcomes})
    series = [
        Series(
            label=_LABELS[activation],
            x=[row.depth for row in rows],
            estimates=[row.accuracy[activation] for row in rows],
            points=[
                (int(outcome.plan.factors["depth"]), outcome.result.test_accuracy)
                for outcome in outcomes
                if outcome.plan.factors["activation"] == activation and outcome.result.test_accuracy is not None
            ],
        )
        for activation in ACTIVATIONS
    ]
    title = f"{dataset.name}: test accuracy by depth after {training['epochs']} epochs"
    plot_by(
        folder / "accuracy_by_depth", series, title=title, x_label="conv-norm-act blocks", baseline=("chance", chance)
    )
    table = markdown_table(
        [
            "blocks",
            *(f"{_LABELS[activation]}, test accuracy" for activation in ACTIVATIONS),
            "ReLU minus Sigmoid, by pairs",
        ],
        [
            [
                str(row.depth),
                *(format_estimate(row.accuracy[activation], row.diverged[activation]) for activation in ACTIVATIONS),
                format_estimate(row.difference, signed=True),
            ]
            for row in rows
        ],
    )
    environment = describe_environment()
    threads = training["threads"] or environment["threads"]
    versions = ", ".join(f"{name} {version}" for name, version in environment["versions"].items())
    rate, width = settings["optimizer"]["learning_rate"], settings["model"]["arguments"]["width"]
    text = f"""# Sigmoid against ReLU on {dataset.name}

{len(outcomes)} runs of {training["epochs"]} epochs, batch size {training["batch_size"]}, width {width},
learning rate {rate}, seeds {", ".join(map(str, seeds))}. The arms of a pair differ in the activation alone.
Test accuracy is that of the final weights, evaluated once. Chance is {100 * chance:g} %.

{table}

A value is the mean over the seeds. After ± stands the half-width of its 95 % confidence interval (Student's t), which
one seed alone cannot give, and in brackets the standard deviation (sd) and the number of runs (n).

![Test accuracy by depth](accuracy_by_depth.png)

Device {training["device"]}, backend {training["backend"]}, precision {training["precision"]}, {environment["machine"]},
{threads} threads, {versions}.
"""
    with atomic_write(folder / "results.md") as file:
        file.write(text.encode())


def _common_settings(config: RunConfig) -> dict[str, Any]:
    """Return what all runs share: the configuration of any of them without its place in the grid."""
    settings = config.to_dict()
    del settings["seed"], settings["model"]["arguments"]["activation"], settings["model"]["arguments"]["depth"]
    return settings


def _announce(options: Options, dataset: ImageDataset, settings: dict[str, Any], runs: int, folder: Path) -> None:
    training = settings["training"]
    print(
        f"sigmoid_vs_relu on {dataset.name}: {runs} runs (depths {','.join(map(str, options.depths))}, seeds "
        f"{','.join(map(str, options.seeds))}), {training['epochs']} epochs each, device {training['device']}, "
        f"backend {training['backend']}, results in {folder}",
        file=sys.stderr,
        flush=True,
    )
