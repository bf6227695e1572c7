"""A data set and configurations small enough to train in a fraction of a second."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

from fastdl.data import ImageDataset, Split
from fastdl.training import DataConfig, ModelConfig, OptimizerConfig, RunConfig, TrainingConfig


@pytest.fixture(scope="module", autouse=True)
def in_one_thread(one_thread: None) -> None:
    """Every test here trains a small network."""


@pytest.fixture(scope="session")
def stripes() -> ImageDataset:
    """Four textures with noise on 8x8 pixels: rows, columns, a chessboard, and nothing."""
    generator = torch.Generator().manual_seed(0)
    row, column = torch.arange(8)[:, None] % 2, torch.arange(8)[None, :] % 2
    textures = torch.stack([row.expand(8, 8), column.expand(8, 8), row ^ column, torch.zeros(8, 8, dtype=torch.int64)])
    splits = {}
    for name, count in (("train", 80), ("test", 40)):
        labels = torch.arange(count) % 4
        noise = torch.randint(0, 120, (count, 8, 8), generator=generator)
        splits[name] = Split((100 * textures[labels] + noise).to(torch.uint8).unsqueeze(1), labels)
    return ImageDataset.from_splits("stripes", splits, ("a", "b", "c", "d"))


def make_config(dataset: ImageDataset, **changes: Any) -> RunConfig:
    """Three epochs of four steps, with crops and mirroring; ``changes`` go to the part that has the field."""
    parts = {
        "data": DataConfig(dataset.name, dataset.fingerprint, crop_padding=1, random_flip=True),
        "model": ModelConfig("conv_network", {"depth": 2, "width": 8, "activation": "relu"}),
        "optimizer": OptimizerConfig(),
        "training": TrainingConfig(epochs=3, batch_size=18, backend="reference"),
    }
    seed = changes.pop("seed", 0)
    for name, value in changes.items():
        if name in parts:
            parts[name] = value
            continue
        (part,) = [key for key, config in parts.items() if name in {field.name for field in dataclasses.fields(config)}]
        parts[part] = dataclasses.replace(parts[part], **{name: value})
    return RunConfig(**parts, seed=seed)  # type: ignore[arg-type]
