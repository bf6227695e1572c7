"""Training a small Vision Transformer from nothing on images of 8 to 32 pixels.

A transformer knows nothing of images beforehand: not that neighbours belong together, nor that a thing is the same
thing where it has moved. The paper (arXiv:2010.11929) makes up for that with 14 million to 300 million images. With
50,000, regularisation has to: crops and mirror images, mixed images, smoothed labels, stochastic depth, weight decay,
and a running mean of the weights (Steiner et al. 2021, How to train your ViT, arXiv:2106.10270; Touvron et al. 2020,
DeiT, arXiv:2012.12877).
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch

from fastdl.data import load_dataset
from fastdl.experiments.options import default_backend, resolve_backend, resolve_device
from fastdl.models.vit import VisionTransformer
from fastdl.training.config import DataConfig, ModelConfig, OptimizerConfig, RunConfig, TrainingConfig

__all__ = ["NAME", "PRESETS", "Options", "run", "run_config"]

NAME = "train_vit"


@dataclass(frozen=True)
class Preset:
    """What depends on the data set; what the command line can set, too, stands here as its default."""

    epochs: int
    batch_size: int
    patch_size: int
    width: int
    depth: int
    num_heads: int
    learning_rate: float
    dropout: float
    stochastic_depth: float
    mixup_alpha: float
    cutmix_alpha: float
    crop_padding: int
    random_flip: bool
    threads: int | None


_PHOTOGRAPHS = Preset(
    epochs=100,
    batch_size=128,
    patch_size=4,
    width=192,
    depth=6,
    num_heads=6,
    learning_rate=1e-3,
    dropout=0.0,
    stochastic_depth=0.1,
    mixup_alpha=0.2,
    cutmix_alpha=1.0,
    crop_padding=4,
    random_flip=True,
    threads=None,
)

PRESETS = {
    # A mirrored digit is another digit, and moving one by a pixel moves it by an eighth of the image.
    "digits": Preset(
        epochs=30,
        batch_size=32,
        patch_size=2,
        width=64,
        depth=4,
        num_heads=4,
        learning_rate=3e-3,
        dropout=0.1,
        stochastic_depth=0.1,
        mixup_alpha=0.2,
        cutmix_alpha=0.0,
        crop_padding=0,
        random_flip=False,
        threads=1,
    ),
    "cifar10": _PHOTOGRAPHS,
    "cifar100": _PHOTOGRAPHS,
}


@dataclass(frozen=True)
class Options:
    """Train a Vision Transformer, and write its weights, its curves and a report."""

    dataset: Literal["digits", "cifar10", "cifar100"] = "cifar10"
    """Data to train on; the digits come with scikit-learn, the others are looked for and fetched if need be."""
    data_dir: Path | None = None
    """Folder of the data sets; $FASTDL_DATA if it is not given."""
    output_dir: Path | None = None
    """Folder of the results; runs/train_vit/<dataset> if it is not given."""
    resume: bool = True
    """Continue what the folder holds; --no-resume moves it aside and starts anew."""
    epochs: int | None = None
    """Passes over the training data; 30 for digits, 100 for the others if it is not given."""
    limit_train: int | None = None
    """Use only so many training examples."""
    batch_size: int | None = None
    """Examples of a step; 32 for digits, 128 for the others if it is not given."""
    patch_size: int | None = None
    """Height and width of a patch in pixels; 2 for digits, 4 for the others if it is not given."""
    width: int | None = None
    """Length of a token; 64 for digits, 192 for the others if it is not given."""
    depth: int | None = None
    """Number of encoder blocks; 4 for digits, 6 for the others if it is not given."""
    num_heads: int | None = None
    """Heads of each block's attention; 4 for digits, 6 for the others if it is not given."""
    pooling: Literal["class", "mean"] = "class"
    """What the classifier reads: the class token, or the mean of the patches."""
    positions: Literal["learned", "sinusoidal"] = "learned"
    """Position embeddings."""
    dropout: float | None = None
    """After position embeddings, attention and MLP layers; 0.1 for digits, 0 for the others if it is not given."""
    attention_dropout: float = 0.0
    """Of attention's weights."""
    stochastic_depth: float | None = None
    """Probability of leaving out the last block; 0.1 if it is not given."""
    learning_rate: float | None = None
    """Of AdamW, at its peak; 0.003 for digits, 0.001 for the others if it is not given."""
    weight_decay: float = 0.05
    """Of weights; norms, biases, class token and position embeddings have none."""
    warmup_fraction: float = 0.1
    """Share of all steps over which the learning rate rises from zero."""
    label_smoothing: float = 0.1
    """Share of a target that is spread over all classes."""
    mixup_alpha: float | None = None
    """Strength of mixup; 0.2 if it is not given."""
    cutmix_alpha: float | None = None
    """Strength of CutMix; 0 for digits, 1 for the others if it is not given."""
    average_decay: float | None = 0.999
    """Decay of the running mean of the weights, which is what is evaluated and kept; None keeps the last weights."""
    gradient_clip_norm: float | None = 1.0
    """Largest norm of the gradient; None does not clip."""
    early_stopping_patience: int | None = None
    """Stop after so many epochs without a better validation accuracy; None trains to the end."""
    seed: int = 0
    """Of initial weights, data order, augmentation and dropout."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    backend: str = field(default_factory=default_backend)
    """Kernels of the fused ops: auto, reference, cpu, triton or cuda."""
    precision: Literal["32-true", "bf16-mixed", "16-mixed"] = "32-true"
    """Of the training; 16-mixed needs a GPU."""
    threads: int | None = None
    """CPU threads; 1 for digits, torch's choice for the others if it is not given."""
    checkpoint_seconds: float = 30.0
    """Write a checkpoint after so many seconds, and at the end of each epoch."""


def run_config(options: Options, fingerprint: str, image_size: tuple[int, int]) -> RunConfig:
    """Return the complete configuration of the run.

    Args:
        options: of the command line; what is None there takes the preset of the data set.
        fingerprint: of the data set.
        image_size: height and width of its images.
    """
    preset = PRESETS[options.dataset]

    def chosen(name: str) -> Any:
        given = getattr(options, name)
        return getattr(preset, name) if given is None else given

    if image_size[0] != image_size[1]:
        raise ValueError(f"images must be square, got {image_size[0]} x {image_size[1]}")
    arguments: dict[str, int | float | str | bool] = {
        "image_size": image_size[0],
        **{name: chosen(name) for name in ("patch_size", "width", "depth", "num_heads", "dropout", "stochastic_depth")},
        "pooling": options.pooling,
        "positions": options.positions,
        "attention_dropout": options.attention_dropout,
    }
    return RunConfig(
        data=DataConfig(
            dataset=options.dataset,
            fingerprint=fingerprint,
            train_examples=options.limit_train,
            crop_padding=preset.crop_padding,
            random_flip=preset.random_flip,
            mixup_alpha=chosen("mixup_alpha"),
            cutmix_alpha=chosen("cutmix_alpha"),
        ),
        model=ModelConfig("vit", arguments),
        optimizer=OptimizerConfig(
            name="adamw",
            learning_rate=chosen("learning_rate"),
            weight_decay=options.weight_decay,
            warmup_fraction=options.warmup_fraction,
        ),
        training=TrainingConfig(
            epochs=chosen("epochs"),
            batch_size=chosen("batch_size"),
            precision=options.precision,
            gradient_clip_norm=options.gradient_clip_norm,
            early_stopping_patience=options.early_stopping_patience,
            device=resolve_device(options.device),
            backend=resolve_backend(options.backend),
            threads=chosen("threads"),
            label_smoothing=options.label_smoothing,
            average_decay=options.average_decay,
        ),
        seed=options.seed,
    )


def run(options: Options) -> Path:
    """Train, and return the folder with ``results.json``, ``results.md``, the curves and the run with its weights.

    Raises:
        ValueError: an option does not fit, or the folder holds other results.
        DataError: the data is missing or damaged.
    """
    if options.checkpoint_seconds < 0:
        raise ValueError(f"checkpoint_seconds must be 0 or more, got {options.checkpoint_seconds}")
    folder = options.output_dir or Path("runs") / NAME / options.dataset
    dataset = load_dataset(options.dataset, options.data_dir)
    height, width = dataset.image_shape[1:]
    config = run_config(options, dataset.fingerprint, (height, width))
    with torch.device("meta"):  # sizes that do not fit are told before a folder is made
        VisionTransformer(num_classes=len(dataset.class_names), **dict(config.model.arguments))  # type: ignore[arg-type]
    settings = config.to_dict()
    # Imported here: it brings Lightning, which takes seconds, and everything above may already have said no.
    from fastdl.experiments.runner import PlannedRun, output_folder, run_grid, write_results
    from fastdl.recipes.report import write_report
    from fastdl.training import CheckpointPolicy

    model, training = settings["model"]["arguments"], settings["training"]
    with output_folder(folder, NAME, settings, resume=options.resume):
        print(
            f"A Vision Transformer on {dataset.name}: {model['depth']} blocks, width {model['width']}, patches of "
            f"{model['patch_size']} x {model['patch_size']} pixels, {training['epochs']} epochs, device "
            f"{training['device']}, backend {training['backend']}, results in {folder}",
            file=sys.stderr,
            flush=True,
        )
        plan = PlannedRun({"seed": options.seed}, config)
        policy = CheckpointPolicy(every_seconds=options.checkpoint_seconds)
        for outcomes in run_grid([plan], dataset, folder, policy):
            write_results(folder / "results.json", NAME, settings, outcomes, 1)
            write_report(folder, f"A Vision Transformer on {dataset.name}", dataset, outcomes[0])
    return folder
