"""What a training run is made of: frozen dataclasses that hold everything its result depends on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

__all__ = [
    "OPTIMIZERS",
    "PRECISIONS",
    "DataConfig",
    "ModelConfig",
    "OptimizerConfig",
    "RunConfig",
    "TrainingConfig",
    "differences",
]

PRECISIONS = ("32-true", "bf16-mixed", "16-mixed")
"""Lightning's names of the precisions that are supported; "16-mixed" needs a GPU."""

OPTIMIZERS = ("sgd", "adamw")
"""Names of the optimizers."""


@dataclass(frozen=True)
class DataConfig:
    """The data of a run.

    Attributes:
        dataset: a name that :func:`fastdl.data.load_dataset` knows.
        fingerprint: of the data set as loaded, before the validation split is held out.
        validation_fraction: share of the training examples that is held out.
        validation_seed: of that choice; the same for all runs, so that they validate on the same images.
        train_examples: use only so many of the remaining training examples, stratified by class; None uses all.
        crop_padding: pixels of zero padding for random crops; 0 for none.
        random_flip: mirror half of the training images left to right.
        mixup_alpha: strength of mixing pairs of training images; 0 for none, see :mod:`fastdl.training.mixing`.
        cutmix_alpha: strength of pasting a part of one training image into another; 0 for none.
    """

    dataset: str
    fingerprint: str
    validation_fraction: float = 0.1
    validation_seed: int = 0
    train_examples: int | None = None
    crop_padding: int = 0
    random_flip: bool = False
    mixup_alpha: float = 0.0
    cutmix_alpha: float = 0.0

    def __post_init__(self) -> None:
        _require(
            0.0 < self.validation_fraction < 1.0, "validation_fraction", self.validation_fraction, "between 0 and 1"
        )
        _require(self.crop_padding >= 0, "crop_padding", self.crop_padding, "0 or more")
        _require(self.mixup_alpha >= 0, "mixup_alpha", self.mixup_alpha, "0 or more")
        _require(self.cutmix_alpha >= 0, "cutmix_alpha", self.cutmix_alpha, "0 or more")


@dataclass(frozen=True)
class ModelConfig:
    """A model by its name in :mod:`fastdl.models`, and the arguments that the data set does not decide."""

    name: str
    arguments: Mapping[str, int | float | str | bool] = field(default_factory=dict)


@dataclass(frozen=True)
class OptimizerConfig:
    """An optimizer with a linear warm-up of its learning rate and a cosine decay to zero.

    Attributes:
        learning_rate: at its peak.
        momentum: of the gradient's running sum (Nesterov's), or of AdamW's running mean, its beta_1.
        weight_decay: on weights of convolutions and linear layers; norms, biases and what a model names in
            ``no_weight_decay()`` have none.
        warmup_fraction: share of all steps over which the learning rate rises from zero.
        name: "sgd", stochastic gradient descent, or "adamw" (Loshchilov and Hutter 2017, arXiv:1711.05101).
        second_momentum: of AdamW's running mean of squared gradients, its beta_2.
    """

    learning_rate: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 5e-4
    warmup_fraction: float = 0.1
    name: str = "sgd"
    second_momentum: float = 0.999

    def __post_init__(self) -> None:
        _require(self.learning_rate > 0, "learning_rate", self.learning_rate, "above 0")
        _require(0 <= self.momentum < 1, "momentum", self.momentum, "at least 0 and below 1")
        _require(self.weight_decay >= 0, "weight_decay", self.weight_decay, "0 or more")
        _require(0 <= self.warmup_fraction < 1, "warmup_fraction", self.warmup_fraction, "at least 0 and below 1")
        _require(self.name in OPTIMIZERS, "name", self.name, f"one of {', '.join(OPTIMIZERS)}")
        _require(0 <= self.second_momentum < 1, "second_momentum", self.second_momentum, "at least 0 and below 1")


@dataclass(frozen=True)
class TrainingConfig:
    """How long and how to train.

    Attributes:
        epochs: passes over the training split.
        batch_size: examples of one step; what is left of an epoch after the last full batch is not used in it.
        precision: one of ``PRECISIONS``.
        gradient_clip_norm: largest norm of the gradient of all parameters together; None does not clip.
        early_stopping_patience: stop after so many epochs without a better validation accuracy; None never does.
        device: "cpu", "cuda" or "cuda:N".
        backend: a name that :func:`fastdl.use_backend` takes.
        threads: CPU threads; None leaves torch's choice, which depends on the machine, and with it the last bit of
            every sum.
        label_smoothing: share of a target that is spread over all classes (Szegedy et al. 2015, arXiv:1512.00567).
        average_decay: evaluate, and keep, a running mean of the weights with this decay a step; None keeps the weights
            of the last step.
    """

    epochs: int
    batch_size: int
    precision: str = "32-true"
    gradient_clip_norm: float | None = 5.0
    early_stopping_patience: int | None = None
    device: str = "cpu"
    backend: str = "auto"
    threads: int | None = None
    label_smoothing: float = 0.0
    average_decay: float | None = None

    def __post_init__(self) -> None:
        _require(self.epochs >= 1, "epochs", self.epochs, "1 or more")
        _require(
            self.batch_size >= 2, "batch_size", self.batch_size, "2 or more, since a batch norm needs two examples"
        )
        _require(self.threads is None or self.threads >= 1, "threads", self.threads, "1 or more")
        _require(self.precision in PRECISIONS, "precision", self.precision, f"one of {', '.join(PRECISIONS)}")
        clip, patience = self.gradient_clip_norm, self.early_stopping_patience
        _require(clip is None or clip > 0, "gradient_clip_norm", clip, "above 0")
        _require(patience is None or patience >= 1, "early_stopping_patience", patience, "1 or more")
        _require(0 <= self.label_smoothing < 1, "label_smoothing", self.label_smoothing, "at least 0 and below 1")
        decay = self.average_decay
        _require(decay is None or 0 < decay < 1, "average_decay", decay, "between 0 and 1")
        if self.precision == "16-mixed" and self.device == "cpu":
            raise ValueError("precision '16-mixed' needs a GPU, got device 'cpu'; use 'bf16-mixed' there")


@dataclass(frozen=True)
class RunConfig:
    """One run: equal configurations give equal results on the same machine, bit for bit."""

    data: DataConfig
    model: ModelConfig
    optimizer: OptimizerConfig
    training: TrainingConfig
    seed: int

    def to_dict(self) -> dict[str, Any]:
        """Return the configuration as nested dictionaries that JSON can hold."""
        content = asdict(self)
        content["model"]["arguments"] = dict(self.model.arguments)
        for part, names in _LATER_FIELDS.items():
            for name in names:
                if content[part][name] == getattr(type(getattr(self, part)), name):
                    del content[part][name]
        return content


# Fields that have joined since the first results were written. At their defaults they are left out, so that such a run
# has the configuration it always had: its record stays valid, and a run that was cut off can still be continued.
_LATER_FIELDS = {
    "data": ("mixup_alpha", "cutmix_alpha"),
    "optimizer": ("name", "second_momentum"),
    "training": ("label_smoothing", "average_decay"),
}


def differences(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Describe where two nested dictionaries differ, as "training.epochs: 2 there, 3 here"."""
    found = []
    for key in sorted({*old, *new}):
        there, here = old.get(key), new.get(key)
        if isinstance(there, Mapping) and isinstance(here, Mapping):
            found += differences(there, here, f"{prefix}{key}.")
        elif there != here:
            found.append(f"{prefix}{key}: {there!r} there, {here!r} here")
    return found


def _require(condition: bool, name: str, value: object, accepted: str) -> None:
    if not condition:
        raise ValueError(f"{name} must be {accepted}, got {value!r}")
