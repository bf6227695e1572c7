"""Batches: order, augmentation and normalisation as functions of seed, epoch and number."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from fastdl.data import ImageDataset, Split
from fastdl.training.batches import BatchNumbers, EvaluationBatches, TrainingBatches, crop_and_flip

CPU = torch.device("cpu")


def numbered_split(count: int, channels: int = 1, size: int = 4) -> Split:
    """Image i is filled with the value i, and has the label i."""
    labels = torch.arange(count)
    return Split(labels.to(torch.uint8)[:, None, None, None].expand(count, channels, size, size).contiguous(), labels)


def make_training(split: Split, seed: int = 0, batch_size: int = 16, **options: Any) -> TrainingBatches:
    channels = split.images.shape[1]
    identity: dict[str, Any] = {"mean": (0.0,) * channels, "std": (1.0,) * channels}
    return TrainingBatches(split, batch_size=batch_size, device=CPU, seed=seed, **identity, **options)


def test_an_epoch_holds_every_example_at_most_once_with_its_label() -> None:
    batches = make_training(numbered_split(100))
    assert len(batches) == 6
    labels = []
    for number in range(len(batches)):
        images, part = batches.training_batch(3, number)
        assert images.shape == (16, 1, 4, 4)
        torch.testing.assert_close(images[:, 0, 0, 0] * 255, part.float())
        labels += part.tolist()
    assert len(set(labels)) == 96


def test_order_depends_on_seed_and_epoch_and_on_nothing_else() -> None:
    def order(seed: int, epoch: int) -> list[int]:
        return make_training(numbered_split(100), seed).training_batch(epoch, 2)[1].tolist()

    reference = order(0, 5)
    torch.manual_seed(99)
    assert order(0, 5) == reference
    assert order(0, 6) != reference
    assert order(1, 5) != reference
    batches = make_training(numbered_split(100))
    for number in (5, 0, 2):  # in any sequence
        labels = batches.training_batch(5, number)[1].tolist()
    assert labels == reference


def test_a_split_smaller_than_a_batch_is_one_batch() -> None:
    batches = make_training(numbered_split(10), batch_size=16)
    assert len(batches) == 1
    assert sorted(batches.training_batch(0, 0)[1].tolist()) == list(range(10))


@pytest.mark.parametrize(("padding", "flip"), [(0, True), (2, False), (2, True)])
def test_crops_and_mirrors_are_those_of_one_image_at_a_time(padding: int, flip: bool) -> None:
    images = torch.randint(1, 256, (64, 6, 5, 3), dtype=torch.uint8)
    result = crop_and_flip(images, padding, flip, torch.Generator().manual_seed(4))
    padded = F.pad(images, (0, 0, padding, padding, padding, padding))
    seen = set()
    for original, found in zip(padded, result, strict=True):
        windows = {
            (top, left, mirrored): original[top : top + 6, left : left + 5]
            for top in range(2 * padding + 1)
            for left in range(2 * padding + 1)
            for mirrored in ((False, True) if flip else (False,))
        }
        matches = [
            place for place, window in windows.items() if torch.equal(found, window.flip(1) if place[2] else window)
        ]
        assert len(matches) == 1
        seen.add(matches[0])
    # 64 draws reach most of the possibilities.
    assert len(seen) > 0.6 * min(64, (2 * padding + 1) ** 2 * (1 + flip))


def test_augmentation_depends_on_seed_epoch_and_number() -> None:
    split = Split(torch.randint(0, 256, (32, 3, 8, 8), dtype=torch.uint8), torch.zeros(32, dtype=torch.int64))

    def images(seed: int = 0, epoch: int = 1, number: int = 1) -> torch.Tensor:
        batches = make_training(split, seed, crop_padding=2, random_flip=True)
        batches._order = (epoch, torch.arange(32))  # the same images, so that the augmentation alone differs
        return batches.training_batch(epoch, number)[0]

    assert torch.equal(images(), images())
    same_images = make_training(split)
    same_images._order = (1, torch.arange(32))
    assert not torch.equal(images(), same_images.training_batch(1, 1)[0])
    assert not torch.equal(images(), images(seed=1))
    assert not torch.equal(images(), images(epoch=2))


def test_normalisation_gives_mean_zero_and_deviation_one_in_channels_last() -> None:
    images = (
        torch.randint(0, 256, (500, 3, 4, 4), dtype=torch.uint8)
        // torch.tensor([1, 2, 4], dtype=torch.uint8)[:, None, None]
    )
    split = Split(images, torch.zeros(500, dtype=torch.int64))
    dataset = ImageDataset.from_splits("x", {"train": split, "test": split}, ("a",))
    batches = EvaluationBatches(split, batch_size=500, mean=dataset.mean, std=dataset.std, device=CPU)
    found, _ = batches.batch(0)
    assert found.dtype == torch.float32
    assert found.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(found.mean(dim=(0, 2, 3)), torch.zeros(3), atol=1e-6, rtol=0)
    torch.testing.assert_close(found.std(dim=(0, 2, 3), correction=0), torch.ones(3))
    expected = (images.double() / 255 - torch.tensor(dataset.mean)[:, None, None]) / torch.tensor(dataset.std)[
        :, None, None
    ]
    torch.testing.assert_close(found.double(), expected, atol=1e-6, rtol=1e-6)


def test_evaluation_covers_the_split_in_order() -> None:
    batches = EvaluationBatches(numbered_split(10), batch_size=4, mean=(0.0,), std=(1.0,), device=CPU)
    assert [len(batches.batch(number)[1]) for number in range(len(batches))] == [4, 4, 2]
    assert torch.cat([batches.batch(number)[1] for number in range(3)]).tolist() == list(range(10))


def test_batch_numbers_continue_after_the_one_that_was_consumed() -> None:
    numbers = BatchNumbers(5)
    iterator = iter(numbers)
    assert [next(iterator), next(iterator)] == [0, 1]
    state = numbers.state_dict()
    other = BatchNumbers(5)
    other.load_state_dict(state)
    iter(other)  # made and not used
    assert list(other) == [2, 3, 4]
    assert list(other) == [0, 1, 2, 3, 4]
    assert list(numbers) == [0, 1, 2, 3, 4]
    assert len(other) == 5
