"""The report of one training run for people: what was trained, what came of it, and the curves."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fastdl.data import ImageDataset
from fastdl.data.files import atomic_write
from fastdl.experiments.markdown_tables import markdown_table
from fastdl.experiments.runner import Outcome

__all__ = ["plot_curves", "write_report"]

_ROWS = 12  # of the table; the curves show every epoch


def write_report(folder: Path, title: str, dataset: ImageDataset, outcome: Outcome) -> None:
    """Write ``results.md``, ``curves.png`` and ``curves.svg``.

    Args:
        folder: of the results.
        title: of report and plot.
        dataset: that was trained on.
        outcome: of the run.
    """
    result, chance = outcome.result, 1 / len(dataset.class_names)
    config, environment = result.config, result.environment
    if result.history:
        plot_curves(folder / "curves", result.history, title=title, chance=chance, test=result.test_accuracy)
    training = config["training"]
    versions = ", ".join(f"{name} {version}" for name, version in environment["versions"].items())
    examples = config["data"]["train_examples"]
    data = "all training examples" if examples is None else f"{examples:,} training examples"
    text = f"""# {title}

{_verdict(result.status, result.test_accuracy, result.test_loss, result.steps, chance)}

{result.parameters:,} parameters, {result.steps:,} steps of {training["batch_size"]} images, {data} but the
validation split, {result.seconds:.0f} seconds of training.

{_table(result.history)}

Loss and accuracy of training are measured on augmented images while the weights still change,
{_of_training(config)}
those of validation and test with {_which_weights(training)}.
The test split is looked at once, at the end.

![Loss and accuracy by epoch](curves.png)

Model: {_settings(config["model"]["arguments"])}.
Optimizer: {_settings(config["optimizer"])}.
Data: {_settings({key: value for key, value in config["data"].items() if key != "fingerprint"})}.
Training: {_settings(training)}; seed {config["seed"]}.
Machine: {environment["machine"]}, {training["threads"] or environment["threads"]} threads, {versions}.

The weights are in `runs/{outcome.plan.name}/weights.safetensors`, with the configuration that made them.
"""
    with atomic_write(folder / "results.md") as file:
        file.write(text.encode())


def plot_curves(
    path: Path, history: list[dict[str, Any]], *, title: str, chance: float, test: float | None = None
) -> None:
    """Draw loss and accuracy by epoch, of training and validation, side by side, to ``path`` .png and .svg."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(9.6, 4.0), layout="constrained")
    figure.suptitle(title)
    epochs = [row["epoch"] + 1 for row in history]
    for axes, what, scale, label in zip(
        figure.subplots(1, 2), ("loss", "accuracy"), (1, 100), ("cross entropy", "accuracy in %"), strict=True
    ):
        for split, color, style in (("train", "#D55E00", "o--"), ("validation", "#0072B2", "s-")):
            values = [scale * row[f"{split}_{what}"] for row in history]
            axes.plot(epochs, values, style, color=color, markersize=4, label=split)
        if what == "accuracy":
            axes.axhline(100 * chance, color="0.5", linewidth=1, linestyle=(0, (1, 2)), label="chance")
            if test is not None:
                axes.plot(epochs[-1], 100 * test, "*", color="#009E73", markersize=12, label="test")
            axes.set_ylim(0, 102)
        else:
            axes.set_ylim(bottom=0)
        axes.set_xlabel("epoch")
        axes.set_ylabel(label)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(axis="y", color="0.9")
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False)
    for suffix, metadata in (("png", {}), ("svg", {"Date": None})):
        with atomic_write(path.with_suffix(f".{suffix}")) as file:
            figure.savefig(file, format=suffix, dpi=150, metadata=metadata)


def _verdict(status: str, accuracy: float | None, loss: float | None, steps: int, chance: float) -> str:
    if accuracy is None:
        return f"The run {status} after {steps} steps: its loss is no number any more. A lower learning rate may help."
    found = f"**Test accuracy {100 * accuracy:.2f} %**" + ("" if loss is None else f", cross entropy {loss:.3f}")
    return f"{found}. Chance is {100 * chance:g} %."


def _table(history: list[dict[str, Any]]) -> str:
    """Some epochs, evenly spaced, the first and the last among them."""
    count = min(_ROWS, len(history))
    chosen = sorted({round(i * (len(history) - 1) / max(count - 1, 1)) for i in range(count)})
    header = ["epoch", "learning rate", "training loss", "training accuracy", "validation loss", "validation accuracy"]
    rows = [
        [
            str(row["epoch"] + 1),
            f"{row['learning_rate']:.2e}",
            f"{row['train_loss']:.3f}",
            f"{100 * row['train_accuracy']:.2f} %",
            f"{row['validation_loss']:.3f}",
            f"{100 * row['validation_accuracy']:.2f} %",
        ]
        for row in (history[index] for index in chosen)
    ]
    return markdown_table(header, rows)


def _of_training(config: Mapping[str, Any]) -> str:
    """What makes training look worse than it is."""
    reasons = []
    if config["data"].get("mixup_alpha") or config["data"].get("cutmix_alpha"):
        reasons.append("accuracy against the larger part of an image that is mixed of two")
    if smoothing := config["training"].get("label_smoothing"):
        reasons.append(f"loss against labels of which {100 * smoothing:g} % is spread over all classes")
    return "".join(f"{reason}, " for reason in reasons) + "and"


def _which_weights(training: Mapping[str, Any]) -> str:
    decay = training.get("average_decay")
    return "the weights of the moment" if decay is None else f"the running mean of the weights (decay {decay:g})"


def _settings(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in values.items())
