"""Splits, statistics and choices of examples."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from fastdl.data import ImageDataset, Split, hold_out_validation, limit_training_examples, load_dataset
from fastdl.data.dataset import channel_statistics, stratified_choice


def make_dataset(count: int = 60, classes: int = 3) -> ImageDataset:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (count, 2, 4, 4), dtype=torch.uint8, generator=generator)
    labels = torch.arange(count) % classes
    names = tuple("abcdefghij"[:classes])
    return ImageDataset.from_splits("letters", {"train": Split(images, labels), "test": Split(images, labels)}, names)


def test_statistics_are_those_of_numpy_in_float64() -> None:
    images = torch.randint(0, 256, (5000, 3, 5, 7), dtype=torch.uint8)
    mean, std = channel_statistics(images)
    values = images.numpy().astype(np.float64) / 255
    np.testing.assert_allclose(mean, values.mean(axis=(0, 2, 3)), rtol=1e-12)
    np.testing.assert_allclose(std, values.std(axis=(0, 2, 3)), rtol=1e-12)


def test_a_constant_channel_has_a_deviation_to_divide_by() -> None:
    assert channel_statistics(torch.full((4, 1, 2, 2), 7, dtype=torch.uint8)) == ((7 / 255,), (1 / 255,))


@pytest.mark.parametrize("count", [0, 1, 7, 99, 100])
def test_stratified_choice_keeps_the_shares(count: int) -> None:
    labels = torch.tensor([0] * 50 + [1] * 30 + [2] * 20)[torch.randperm(100)]
    chosen = stratified_choice(labels, count, seed=3)
    assert len(chosen.unique()) == count
    assert chosen.equal(chosen.sort().values)
    for label, share in ((0, 0.5), (1, 0.3), (2, 0.2)):
        assert abs(int((labels[chosen] == label).sum()) - share * count) < 1


def test_stratified_choice_depends_on_the_seed_alone() -> None:
    labels = torch.arange(100) % 10
    torch.manual_seed(1)
    first = stratified_choice(labels, 30, seed=5)
    torch.manual_seed(2)
    assert first.equal(stratified_choice(labels, 30, seed=5))
    assert not first.equal(stratified_choice(labels, 30, seed=6))


def test_validation_is_taken_from_the_training_split_and_nothing_is_lost() -> None:
    dataset = make_dataset()
    held = hold_out_validation(dataset, 0.2, seed=1)
    assert held.split_names == ("train", "validation", "test")
    assert (len(held.train), len(held.splits["validation"]), len(held.test)) == (48, 12, 60)
    together = torch.cat([held.train.images, held.splits["validation"].images])
    assert sorted(map(bytes, together.numpy())) == sorted(map(bytes, dataset.train.images.numpy()))
    assert held.splits["validation"].labels.bincount().tolist() == [4, 4, 4]
    assert held.mean == channel_statistics(held.train.images)[0]
    assert held.mean != dataset.mean


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.1, float("nan")])
def test_a_fraction_out_of_range_is_refused(fraction: float) -> None:
    with pytest.raises(ValueError, match="fraction must lie between 0 and 1, got"):
        hold_out_validation(make_dataset(), fraction)


def test_a_validation_split_without_some_class_is_refused() -> None:
    with pytest.raises(ValueError, match="leaves some of the 3 classes without an example in split 'validation'"):
        hold_out_validation(make_dataset(), 0.02)


def test_a_second_validation_split_is_refused() -> None:
    with pytest.raises(ValueError, match="has a validation split already"):
        hold_out_validation(hold_out_validation(make_dataset()))


def test_limiting_keeps_the_other_splits_and_the_statistics() -> None:
    dataset = make_dataset()
    limited = limit_training_examples(dataset, 9)
    assert limited.train.labels.bincount().tolist() == [3, 3, 3]
    assert limited.test is dataset.test
    assert limited.mean == dataset.mean
    with pytest.raises(ValueError, match="count must be 3 to 60 for letters, got 2"):
        limit_training_examples(dataset, 2)


def test_a_dataset_cannot_be_changed() -> None:
    dataset = make_dataset()
    with pytest.raises(dataclasses.FrozenInstanceError):
        dataset.name = "other"  # type: ignore[misc]
    with pytest.raises(TypeError):
        dataset.splits["train"] = dataset.test  # type: ignore[index]


def test_the_fingerprint_follows_pixels_labels_and_split_names() -> None:
    first, second = make_dataset(), make_dataset()
    assert first.fingerprint == second.fingerprint
    second.test.images[3, 1, 2, 2] ^= 1
    assert first.fingerprint != ImageDataset.from_splits("letters", second.splits, second.class_names).fingerprint
    assert first.fingerprint != hold_out_validation(first).fingerprint


def test_wrong_tensors_are_refused_by_name() -> None:
    labels = torch.zeros(3, dtype=torch.int64)
    with pytest.raises(ValueError, match="images must be a uint8 tensor of shape"):
        Split(torch.zeros(3, 1, 2, 2), labels)
    with pytest.raises(ValueError, match=r"labels must be an int64 tensor of shape \(2,\)"):
        Split(torch.zeros(2, 1, 2, 2, dtype=torch.uint8), labels)
    split = Split(torch.zeros(3, 1, 2, 2, dtype=torch.uint8), labels)
    with pytest.raises(ValueError, match="splits must hold 'train' and 'test', got"):
        ImageDataset.from_splits("x", {"train": split}, ("a",))
    outside = Split(split.images, labels + 1)
    with pytest.raises(ValueError, match="labels of split 'test' of x must be 0 to 0, got 1 to 1"):
        ImageDataset.from_splits("x", {"train": split, "test": outside}, ("a",))


def test_digits_are_the_real_ones() -> None:
    from sklearn.datasets import load_digits

    dataset = load_dataset("digits")
    assert dataset.image_shape == (1, 8, 8)
    assert (len(dataset.train), len(dataset.test)) == (1437, 360)
    assert dataset.class_names == tuple("0123456789")
    assert dataset.test.labels.bincount().min() >= 34  # stratified: 36 of each, give or take their shares
    bunch = load_digits()
    original = {
        (bytes(np.rint(image * 255 / 16).astype(np.uint8)), int(label))
        for image, label in zip(*(bunch.images, bunch.target), strict=True)
    }
    loaded = {
        (bytes(image), int(label))
        for split in dataset.splits.values()
        for image, label in zip(split.images.numpy(), split.labels, strict=True)
    }
    assert loaded == original
    assert dataset.fingerprint == load_dataset("digits").fingerprint


def test_an_unknown_name_is_refused() -> None:
    with pytest.raises(ValueError, match="name must be one of digits, cifar10, cifar100, got 'mnist'"):
        load_dataset("mnist")
