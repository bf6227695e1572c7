"""Labelled images held in memory, with their splits and the statistics of the training split."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from types import MappingProxyType

import torch
from torch import Tensor

__all__ = ["ImageDataset", "Split", "hold_out_validation", "limit_training_examples"]


@dataclass(frozen=True, eq=False)
class Split:
    """One split of a data set.

    Attributes:
        images: uint8 tensor of shape (N, C, H, W).
        labels: int64 tensor of shape (N,).
    """

    images: Tensor
    labels: Tensor

    def __post_init__(self) -> None:
        if self.images.dtype != torch.uint8 or self.images.dim() != 4:
            found = f"{self.images.dtype} of shape {tuple(self.images.shape)}"
            raise ValueError(f"images must be a uint8 tensor of shape (N, C, H, W), got {found}")
        if self.labels.dtype != torch.int64 or self.labels.shape != self.images.shape[:1]:
            found = f"{self.labels.dtype} of shape {tuple(self.labels.shape)}"
            raise ValueError(f"labels must be an int64 tensor of shape ({len(self.images)},), got {found}")

    def __len__(self) -> int:
        return len(self.labels)

    def select(self, indices: Tensor) -> Split:
        """Return the examples at ``indices`` (int64, any length), copied."""
        return Split(self.images[indices], self.labels[indices])


@dataclass(frozen=True, eq=False)
class ImageDataset:
    """A data set of small images, whole in memory.

    Attributes:
        name: as given to :func:`fastdl.data.load_dataset`.
        splits: the splits by name; "train" and "test" are always there.
        class_names: the name of each label, in the order of the labels.
        mean: mean of each channel over the training split, of values scaled to [0, 1].
        std: standard deviation of each channel, likewise.
    """

    name: str
    splits: Mapping[str, Split]
    class_names: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @classmethod
    def from_splits(cls, name: str, splits: Mapping[str, Split], class_names: tuple[str, ...]) -> ImageDataset:
        """Build a data set and compute ``mean`` and ``std`` from its training split.

        Raises:
            ValueError: a split is missing or empty, or a label has no class name.
        """
        for required in ("train", "test"):
            if required not in splits:
                raise ValueError(f"splits must hold 'train' and 'test', got {sorted(splits)}")
        for split_name, split in splits.items():
            if len(split) == 0:
                raise ValueError(f"split {split_name!r} of {name} is empty")
            low, high = int(split.labels.min()), int(split.labels.max())
            if low < 0 or high >= len(class_names):
                allowed = f"0 to {len(class_names) - 1}"
                raise ValueError(f"labels of split {split_name!r} of {name} must be {allowed}, got {low} to {high}")
        mean, std = channel_statistics(splits["train"].images)
        return cls(name, MappingProxyType(dict(splits)), tuple(class_names), mean, std)

    @property
    def train(self) -> Split:
        return self.splits["train"]

    @property
    def test(self) -> Split:
        return self.splits["test"]

    @property
    def split_names(self) -> tuple[str, ...]:
        return tuple(self.splits)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of an image."""
        channels, height, width = self.train.images.shape[1:]
        return channels, height, width

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over the names, shapes, pixels and labels of all splits: equal data, equal fingerprint."""
        digest = hashlib.sha256()
        for split_name, split in sorted(self.splits.items()):
            digest.update(f"{split_name}{tuple(split.images.shape)}".encode())
            digest.update(split.images.contiguous().numpy().data)
            digest.update(split.labels.contiguous().numpy().data)
        return digest.hexdigest()


def channel_statistics(images: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and standard deviation of each channel of uint8 images (N, C, H, W), scaled to [0, 1].

    The sums are sums of integers below 2**53, so float64 holds them exactly, whatever the order of the additions.
    A channel that is constant gets the deviation of one grey level, so that dividing by it is harmless.
    """
    total = torch.zeros(images.shape[1], dtype=torch.float64)
    squares = torch.zeros_like(total)
    for chunk in images.split(2048):
        values = chunk.to(torch.float64)
        total += values.sum(dim=(0, 2, 3))
        squares += values.square_().sum(dim=(0, 2, 3))
    count = images.numel() // images.shape[1]
    mean = total / count
    variance = (squares / count - mean.square()).clamp_min_(1.0)
    return tuple((mean / 255).tolist()), tuple((variance.sqrt() / 255).tolist())


def stratified_choice(labels: Tensor, count: int, seed: int) -> Tensor:
    """Choose ``count`` indices so that every class keeps its share of the examples; return them in ascending order.

    Shares are rounded by the largest remainder, so the counts add up to ``count`` exactly.
    """
    generator = torch.Generator().manual_seed(seed)
    members = [torch.nonzero(labels == label).flatten() for label in labels.unique().tolist()]
    shares = torch.tensor([len(member) for member in members], dtype=torch.float64) * (count / len(labels))
    taken = shares.floor().to(torch.int64)
    by_remainder = torch.argsort(shares - taken, descending=True, stable=True)
    taken[by_remainder[: count - int(taken.sum())]] += 1
    chosen = [
        member[torch.randperm(len(member), generator=generator)[:number]]
        for member, number in zip(members, taken.tolist(), strict=True)
    ]
    return torch.cat(chosen).sort().values


def hold_out_validation(dataset: ImageDataset, fraction: float = 0.1, seed: int = 0) -> ImageDataset:
    """Move a part of the training split into a new split "validation".

    The part is stratified by class and depends on ``seed`` alone. Mean and deviation are computed anew from what is
    left for training, so that nothing about the held-out images enters the training.

    Args:
        dataset: a data set without a validation split.
        fraction: share of the training examples to hold out, above 0 and below 1.
        seed: of the choice.

    Raises:
        ValueError: ``fraction`` is out of range, a class would lose all or none of its examples, or the data set has
            a validation split already.
    """
    if not 0.0 < fraction < 1.0:
        raise ValueError(f"fraction must lie between 0 and 1, got {fraction}")
    if "validation" in dataset.splits:
        raise ValueError(f"{dataset.name} has a validation split already")
    train = dataset.train
    validation = stratified_choice(train.labels, round(fraction * len(train)), seed)
    keep = torch.ones(len(train), dtype=torch.bool)
    keep[validation] = False
    parts = {"train": train.select(torch.nonzero(keep).flatten()), "validation": train.select(validation)}
    classes = len(train.labels.unique())
    for name, part in parts.items():
        if len(part.labels.unique()) < classes:
            raise ValueError(
                f"fraction {fraction} of the {len(train)} training examples of {dataset.name} leaves some of the "
                f"{classes} classes without an example in split {name!r}"
            )
    others = {name: split for name, split in dataset.splits.items() if name != "train"}
    return ImageDataset.from_splits(dataset.name, {**parts, **others}, dataset.class_names)


def limit_training_examples(dataset: ImageDataset, count: int, seed: int = 0) -> ImageDataset:
    """Return the data set with a stratified choice of ``count`` training examples; statistics are kept as they are.

    Raises:
        ValueError: ``count`` is below the number of classes or above the number of training examples.
    """
    if not len(dataset.class_names) <= count <= len(dataset.train):
        allowed = f"{len(dataset.class_names)} to {len(dataset.train)}"
        raise ValueError(f"count must be {allowed} for {dataset.name}, got {count}")
    train = dataset.train.select(stratified_choice(dataset.train.labels, count, seed))
    return replace(dataset, splits=MappingProxyType({**dataset.splits, "train": train}))
