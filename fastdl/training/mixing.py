"""Training images made of two: mixup and CutMix, which teach a network to be less sure between its classes."""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["mix"]


def mix(
    images: Tensor, labels: Tensor, class_count: int, *, mixup_alpha: float, cutmix_alpha: float, seed: int
) -> tuple[Tensor, Tensor]:
    """Mix each image of a batch with another one of it, and their labels in the same proportion.

    - mixup (Zhang et al. 2017, arXiv:1710.09412): ``share * image + (1 - share) * other``.
    - CutMix (Yun et al. 2019, arXiv:1905.04899): a rectangle of ``1 - share`` of the area comes from the other.

    The share is drawn from Beta(alpha, alpha) once a batch; with both, half of the batches get one and half the other.

    Args:
        images: (N, C, H, W), floating-point.
        labels: int64 (N,).
        class_count: K, number of classes.
        mixup_alpha, cutmix_alpha: at least 0; 0 leaves it out.
        seed: of all choices, which are made on the CPU.

    Returns:
        Images (N, C, H, W), and targets (N, K): for each image the shares of its classes, which add up to 1.
    """
    targets = F.one_hot(labels, class_count).to(images.dtype)
    if not mixup_alpha and not cutmix_alpha:
        return images, targets
    generator = np.random.default_rng(seed)
    other = torch.from_numpy(generator.permutation(len(images))).to(images.device)
    cut = cutmix_alpha > 0 and (mixup_alpha == 0 or generator.random() < 0.5)
    alpha = cutmix_alpha if cut else mixup_alpha
    share = float(generator.beta(alpha, alpha))
    if not cut:
        return torch.lerp(images[other], images, share), torch.lerp(targets[other], targets, share)
    height, width = images.shape[2:]
    rows, columns = (_interval(size, math.sqrt(1 - share), generator) for size in (height, width))
    mixed = images.clone()
    mixed[:, :, rows, columns] = images[other][:, :, rows, columns]
    # The rectangle is cut off at the border, so that the share is what is left of the image.
    share = 1 - (rows.stop - rows.start) * (columns.stop - columns.start) / (height * width)
    return mixed, torch.lerp(targets[other], targets, share)


def _interval(size: int, share: float, generator: np.random.Generator) -> slice:
    """About ``share`` of ``size`` around a place that is drawn, without what lies outside."""
    length = round(size * share)
    start = int(generator.integers(size)) - length // 2
    return slice(max(start, 0), min(start + length, size))
