"""The command-line options that the experiments share, and their types."""

from __future__ import annotations

import os
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

import torch
import tyro

import fastdl

if TYPE_CHECKING:
    from fastdl.experiments.definition import ExperimentDefinition, Protocol

__all__ = [
    "CommonOptions",
    "IntegerList",
    "Seeds",
    "complete",
    "default_backend",
    "protocol_of",
    "resolve_backend",
    "resolve_device",
]


def parse_integers(text: str) -> tuple[int, ...]:
    """Parse "1,4,8"; raises ValueError for anything but distinct integers separated by commas."""
    try:
        values = tuple(int(part) for part in text.removesuffix(",").split(","))
    except ValueError as error:
        raise ValueError(f"expected integers separated by commas, as 1,4,8, got {text!r}") from error
    if len(set(values)) < len(values):
        raise ValueError(f"expected every integer once, got {text!r}")
    return values


def parse_seeds(text: str) -> tuple[int, ...]:
    """Parse "3" as the seeds 0, 1, 2, "0,5" as these two, and "5," as this one."""
    values = parse_integers(text)
    if "," not in text:
        if values[0] < 1:
            raise ValueError(f"expected a number of seeds of at least 1, or seeds separated by commas, got {text!r}")
        return tuple(range(values[0]))
    if min(values) < 0:
        raise ValueError(f"expected seeds of 0 or more, got {text!r}")
    return values


def _show_integers(values: tuple[int, ...]) -> list[str]:
    return [",".join(map(str, values))]


def _show_seeds(values: tuple[int, ...]) -> list[str]:
    return [f"{values[0]},"] if len(values) == 1 else _show_integers(values)


def _is_integers(value: object) -> bool:
    return isinstance(value, tuple) and all(isinstance(part, int) for part in value)


IntegerList = Annotated[
    tuple[int, ...],
    tyro.constructors.PrimitiveConstructorSpec(
        nargs=1,
        metavar="N,N,...",
        instance_from_str=lambda arguments: parse_integers(arguments[0]),
        is_instance=_is_integers,
        str_from_instance=_show_integers,
    ),
]
"""Integers separated by commas."""

Seeds = Annotated[
    tuple[int, ...],
    tyro.constructors.PrimitiveConstructorSpec(
        nargs=1,
        metavar="COUNT|N,N,...",
        instance_from_str=lambda arguments: parse_seeds(arguments[0]),
        is_instance=_is_integers,
        str_from_instance=_show_seeds,
    ),
]
"""A number of seeds, counted from 0, or the seeds themselves separated by commas."""


def resolve_device(name: str) -> str:
    """Return "cpu", "cuda" or "cuda:N" for the name of a device, where "auto" takes a GPU if there is one.

    Raises:
        ValueError: the name is none of these, or there is no such GPU.
    """
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    kind, _, index = name.partition(":")
    if kind not in ("cpu", "cuda") or (":" in name and not (kind == "cuda" and index.isdecimal())):
        raise ValueError(f"device must be auto, cpu, cuda or cuda:N, got {name!r}")
    if kind == "cuda" and int(index or 0) >= torch.cuda.device_count():
        raise ValueError(f"device {name!r} is not there: torch sees {torch.cuda.device_count()} CUDA devices")
    return name


def default_backend() -> str:
    """Return the backend that ``FASTDL_BACKEND`` asks for, otherwise "auto"."""
    return os.environ.get("FASTDL_BACKEND") or "auto"


def resolve_backend(name: str) -> str:
    """Return the name of a backend that can be used here.

    Raises:
        ValueError: there is no such backend, or it is not available; the message says why.
    """
    if name == "auto":
        return name
    statuses = fastdl.backends()
    if name not in statuses:
        raise ValueError(f"backend must be one of auto, {', '.join(statuses)}, got {name!r}")
    if not statuses[name].available:
        raise ValueError(f"backend {name!r} is not available: {statuses[name].reason}")
    return name


@dataclass(frozen=True)
class CommonOptions:
    """What every experiment takes. None stands for what the protocol says, see `complete`."""

    protocol: Literal["smoke", "cpu", "full"] | None = None
    """smoke: the digits that come with scikit-learn, in under a minute. cpu: CIFAR on two cores in under an hour. full: CIFAR on a GPU. By the data set and the device if it is not given."""  # noqa: E501
    dataset: Literal["digits", "cifar10", "cifar100"] | None = None
    """Data to train on in place of the protocol's; what is not digits is looked for and fetched if need be."""
    data_dir: Path | None = None
    """Folder of the data sets; $FASTDL_DATA if it is not given."""
    seeds: Seeds | None = None
    """How many seeds (3 means 0, 1 and 2), or which ones (as 0,5)."""
    epochs: int | None = None
    """Passes over the training data."""
    batch_size: int | None = None
    """Examples of a step."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    backend: str = field(default_factory=default_backend)
    """Kernels of the fused ops: auto, reference, cpu, triton or cuda."""
    output_dir: Path | None = None
    """Folder of the results; runs/EXPERIMENT/PROTOCOL if it is not given."""
    resume: bool = True
    """Continue what the folder holds; --no-resume moves it aside and starts anew."""
    time_limit: float | None = None
    """Stop after so many minutes, in the midst of a run if need be; the same command continues."""
    jobs: int | None = None
    """Runs at the same time, each in a process of its own; one for each core, or one on a GPU, if it is not given."""
    width: int | None = None
    """Channels of every block."""
    learning_rate: float | None = None
    """Of stochastic gradient descent, at its peak."""
    learning_rates: Path | None = None
    """best.json of `fastdl search`: every arm is trained with the learning rate that was best for it."""
    threads: int | None = None
    """CPU threads of a run."""
    precision: Literal["32-true", "bf16-mixed", "16-mixed"] | None = None
    """Of the training; 16-mixed needs a GPU."""
    gradient_clip_norm: float | None = 5.0
    """Largest norm of the gradient; None does not clip."""
    early_stopping_patience: int | None = None
    """Stop after so many epochs without a better validation accuracy; None trains to the end."""
    train_examples: int | None = None
    """Use only so many training examples; 0 for all."""
    checkpoint_seconds: float = 30.0
    """Write a checkpoint after so many seconds, and at the end of each epoch."""
    track: tuple[Literal["tensorboard", "wandb", "mlflow"], ...] = ()
    """Where else to log; CSV and JSONL are always written."""
    lang: Literal["en", "ko"] = "en"
    """Language of the report."""


_Options = TypeVar("_Options", bound=CommonOptions)


def protocol_of(options: CommonOptions, definition: ExperimentDefinition) -> tuple[str, Protocol]:
    """The protocol that options name or mean, and its name.

    Raises:
        ValueError: the data set is none for the protocol.
    """
    name: str
    if options.protocol is not None:
        name = options.protocol
    elif options.dataset in (None, "digits"):
        name = "smoke"
    else:
        name = "cpu" if resolve_device(options.device) == "cpu" else "full"
    protocol = definition.protocols[name]
    if options.dataset is not None and (options.dataset == "digits") != (protocol.dataset == "digits"):
        raise ValueError(
            f"protocol {name!r} is made for {protocol.dataset}, got dataset {options.dataset!r}; "
            f"choose another protocol, or leave it out"
        )
    return name, protocol


def complete(options: _Options, definition: ExperimentDefinition) -> _Options:
    """The options with everything that the protocol decides filled in, and the device and the backend resolved.

    Raises:
        ValueError: a value does not fit.
    """
    name, protocol = protocol_of(options, definition)
    device = resolve_device(options.device)
    filled: dict[str, Any] = {
        "dataset": protocol.dataset,
        "seeds": tuple(range(protocol.seeds)),
        "epochs": protocol.many_epochs if getattr(options, "schedule", "base") == "many_epochs" else protocol.epochs,
        "batch_size": protocol.batch_size,
        "learning_rate": protocol.learning_rate,
        "width": protocol.model["width"],
        "threads": protocol.threads,
        "precision": protocol.precision,
        "train_examples": protocol.train_examples or 0,
        "jobs": protocol.jobs or ((os.cpu_count() or 1) if device == "cpu" else 1),
        **protocol.levels,
    }
    given = {key: value for key in filled if (value := getattr(options, key)) is not None}
    if options.seeds is not None and not options.seeds:
        raise ValueError("seeds must hold at least one seed")
    if options.checkpoint_seconds < 0:
        raise ValueError(f"checkpoint_seconds must be 0 or more, got {options.checkpoint_seconds}")
    if options.time_limit is not None and options.time_limit <= 0:
        raise ValueError(f"time_limit must be above 0 minutes, got {options.time_limit}")
    if options.jobs is not None and options.jobs < 1:
        raise ValueError(f"jobs must be 1 or more, got {options.jobs}")
    decided: dict[str, Any] = {"protocol": name, "device": device, "backend": resolve_backend(options.backend)}
    return replace(options, **{**filled, **given, **decided})
