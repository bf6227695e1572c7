"""mixup and CutMix: each image is made of two, and its target says how much of each it has."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fastdl.training.mixing import mix

COUNT, SIZE = 12, 8


def numbered() -> tuple[Tensor, Tensor]:
    """Image i is filled with i + 1 and has the label i, so that every pixel tells where it comes from."""
    labels = torch.arange(COUNT)
    return (labels + 1.0)[:, None, None, None].expand(COUNT, 3, SIZE, SIZE).contiguous(), labels


def mixed(seed: int, mixup: float, cutmix: float) -> tuple[Tensor, Tensor]:
    return mix(*numbered(), COUNT, mixup_alpha=mixup, cutmix_alpha=cutmix, seed=seed)


def test_nothing_is_mixed_at_zero() -> None:
    images, targets = mixed(0, 0.0, 0.0)
    assert torch.equal(images, numbered()[0])
    assert torch.equal(targets, torch.eye(COUNT))


@pytest.mark.parametrize(("mixup", "cutmix"), [(0.2, 0.0), (0.0, 1.0), (0.2, 1.0)])
def test_targets_are_the_shares_of_the_image(mixup: float, cutmix: float) -> None:
    """The mean of the pixels is the same mixture of the two images' values as the target is of their labels."""
    for seed in range(20):
        images, targets = mixed(seed, mixup, cutmix)
        torch.testing.assert_close(targets.sum(1), torch.ones(COUNT))
        torch.testing.assert_close(images.mean(dim=(1, 2, 3)), targets @ (torch.arange(COUNT) + 1.0))


def test_mixup_blends_and_cutmix_pastes_one_rectangle() -> None:
    seen_parts = set()
    for seed in range(20):
        blended, _ = mixed(seed, 1.0, 0.0)
        assert all(image.unique().numel() == 1 for image in blended)
        pasted, _ = mixed(seed, 0.0, 1.0)
        foreign = pasted != numbered()[0]
        part = foreign.any(0).any(0)
        rows, columns = part.any(1), part.any(0)
        assert torch.equal(part, rows[:, None] & columns[None, :])
        assert int(rows.sum()) == 0 or torch.equal(
            rows.nonzero().flatten().diff(), torch.ones(int(rows.sum()) - 1).long()
        )
        seen_parts.add(int(part.sum()))
    assert len(seen_parts) > 8


def test_shares_are_those_of_the_beta_distribution() -> None:
    """Beta(1, 1) is uniform: its mean over 400 draws is 0.5 within 4 deviations, 4 * sqrt(1 / 12 / 400)."""
    shares = torch.tensor([mixed(seed, 1.0, 0.0)[1][0, 0] for seed in range(400)])
    assert abs(shares.mean() - 0.5) < 0.06
    narrow = torch.tensor([mixed(seed, 0.2, 0.0)[1][0, 0] for seed in range(400)])
    assert ((narrow < 0.1) | (narrow > 0.9)).float().mean() > 0.5  # a small alpha leaves most images nearly pure


def test_both_take_turns() -> None:
    kinds = {bool((mixed(seed, 1.0, 1.0)[0] % 1).any()) for seed in range(20)}
    assert kinds == {True, False}


def test_choices_depend_on_the_seed_alone() -> None:
    torch.manual_seed(1)
    first = mixed(3, 0.2, 1.0)
    torch.manual_seed(2)
    assert all(torch.equal(a, b) for a, b in zip(first, mixed(3, 0.2, 1.0), strict=True))
    assert not torch.equal(first[0], mixed(4, 0.2, 1.0)[0])
