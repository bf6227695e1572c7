"""The configuration that the experiments have in common: a network of blocks on small images, trained by SGD."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from fastdl.experiments.options import CommonOptions
from fastdl.training.config import DataConfig, ModelConfig, OptimizerConfig, RunConfig, TrainingConfig

__all__ = ["block_network_config"]


def block_network_config(
    options: CommonOptions, fingerprint: str, model: Mapping[str, Any], seed: int, **training: Any
) -> RunConfig:
    """The configuration of one run of a `fastdl.models.conv_network.ConvNetwork`.

    Args:
        options: complete.
        fingerprint: of the data set.
        model: arguments of the network but its width.
        seed: of initial weights, data order and augmentation.
        training: fields of `TrainingConfig` or of `OptimizerConfig` that an arm decides.
    """
    assert options.dataset is not None
    assert options.learning_rate is not None
    assert options.epochs is not None
    assert options.batch_size is not None
    assert options.precision is not None
    assert options.width is not None
    # Colour photographs are cropped and mirrored as is customary since He et al. 2015; a mirrored digit is another one.
    photographs = options.dataset != "digits"
    config = RunConfig(
        data=DataConfig(
            dataset=options.dataset,
            fingerprint=fingerprint,
            train_examples=options.train_examples or None,
            crop_padding=4 if photographs else 0,
            random_flip=photographs,
        ),
        model=ModelConfig(name="conv_network", arguments={**model, "width": options.width}),
        optimizer=OptimizerConfig(learning_rate=options.learning_rate),
        training=TrainingConfig(
            epochs=options.epochs,
            batch_size=training.pop("batch_size", options.batch_size),
            precision=options.precision,
            gradient_clip_norm=options.gradient_clip_norm,
            early_stopping_patience=options.early_stopping_patience,
            device=options.device,
            backend=options.backend,
            threads=options.threads,
        ),
        seed=seed,
    )
    if "learning_rate" in training:
        config = replace(config, optimizer=replace(config.optimizer, learning_rate=training.pop("learning_rate")))
    return replace(config, training=replace(config.training, **training)) if training else config
