"""What a transformer's training adds: AdamW, mixed images, smoothed labels, a mean of the weights; and exact resume."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from fastdl.data import ImageDataset
from fastdl.models.vit import VisionTransformer
from fastdl.training import CheckpointPolicy, DataConfig, ModelConfig, OptimizerConfig, RunConfig, train_classifier
from fastdl.training.batches import TrainingBatches
from fastdl.training.optimizer import make_optimizer, weight_averaging
from tests.models.plain_vit import SIZES
from tests.training.conftest import make_config


def vit_config(dataset: ImageDataset, **changes: Any) -> RunConfig:
    """Everything that draws random numbers, or keeps a state, at once."""
    arguments = {
        "image_size": 8, "patch_size": 2, "width": 16, "depth": 2, "num_heads": 2, "dropout": 0.1,
        "attention_dropout": 0.1, "stochastic_depth": 0.2,
    }  # fmt: skip
    options: dict[str, Any] = {
        "data": DataConfig(
            dataset.name, dataset.fingerprint, crop_padding=1, random_flip=True, mixup_alpha=0.2, cutmix_alpha=1.0
        ),
        "model": ModelConfig("vit", arguments),
        "optimizer": OptimizerConfig(name="adamw", learning_rate=3e-3, weight_decay=0.05),
        "label_smoothing": 0.1,
        "average_decay": 0.9,
        "gradient_clip_norm": 1.0,
    }
    return make_config(dataset, **{**options, **changes})


class Cut(BaseException):
    """Stands for the end of the process: nothing catches it but the test."""


@pytest.mark.parametrize("step", [1, 6, 11])
def test_a_run_that_was_cut_off_ends_with_the_same_weights(
    stripes: ImageDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    config, policy = vit_config(stripes), CheckpointPolicy(every_steps=1)
    expected = train_classifier(config, stripes, tmp_path / "whole")
    original, calls = TrainingBatches.training_batch, 0

    def cutting(*arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == step:
            raise Cut
        return original(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(TrainingBatches, "training_batch", cutting)
        with pytest.raises(Cut):
            train_classifier(config, stripes, tmp_path / "cut", policy=policy)
    found = train_classifier(config, stripes, tmp_path / "cut", policy=policy)
    assert found.history == expected.history
    first, second = (safetensors.torch.load_file(tmp_path / name / "weights.safetensors") for name in ("whole", "cut"))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_the_mean_of_the_weights_is_what_is_kept(stripes: ImageDataset, tmp_path: Path) -> None:
    train_classifier(vit_config(stripes), stripes, tmp_path)
    kept = safetensors.torch.load_file(tmp_path / "weights.safetensors")
    (newest,) = sorted((tmp_path / "checkpoints").glob("*.ckpt"))[-1:]
    state = torch.load(newest, weights_only=True)["state_dict"]
    for name, value in kept.items():
        assert torch.equal(value, state[f"average.module.{name}"])
    assert not torch.equal(kept["head.weight"], state["model.head.weight"])


def test_the_mean_follows_quickly_at_first_and_slowly_later() -> None:
    update = weight_averaging(0.9)
    mean, weights = [torch.zeros(2)], [torch.ones(2)]
    update(mean, weights, 1)
    torch.testing.assert_close(mean[0], torch.full((2,), 1 - 2 / 11))
    mean = [torch.zeros(2)]
    update(mean, weights, 1000)
    torch.testing.assert_close(mean[0], torch.full((2,), 0.1))


def test_decay_is_for_weights_of_products_alone() -> None:
    model = VisionTransformer(**SIZES)
    optimizer = make_optimizer(model, OptimizerConfig(name="adamw", momentum=0.8, weight_decay=0.3))
    assert isinstance(optimizer, torch.optim.AdamW)
    decayed, others = optimizer.param_groups
    assert (decayed["weight_decay"], others["weight_decay"], decayed["betas"]) == (0.3, 0.0, (0.8, 0.999))
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    without = {names[id(parameter)] for parameter in others["params"]}
    assert {name for name in names.values() if "norm" in name or name.endswith("bias")} < without
    assert {"positions.table", "class_token.token"} <= without
    assert {names[id(parameter)] for parameter in decayed["params"]} == set(names.values()) - without


def test_configurations_of_before_stay_as_they_were(stripes: ImageDataset) -> None:
    """Runs that use nothing new have the record that they had before it came."""
    plain, new = make_config(stripes).to_dict(), vit_config(stripes).to_dict()
    assert set(plain["optimizer"]) == {"learning_rate", "momentum", "weight_decay", "warmup_fraction"}
    assert set(new["data"]) - set(plain["data"]) == {"mixup_alpha", "cutmix_alpha"}
    assert set(new["training"]) - set(plain["training"]) == {"label_smoothing", "average_decay"}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: OptimizerConfig(name="lion"), "name must be one of sgd, adamw, got 'lion'"),
        (lambda: OptimizerConfig(second_momentum=1.0), "second_momentum must be at least 0 and below 1"),
        (lambda: DataConfig("x", "y", mixup_alpha=-1.0), "mixup_alpha must be 0 or more"),
    ],
)
def test_wrong_settings_are_refused(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
