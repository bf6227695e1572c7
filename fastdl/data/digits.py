"""Handwritten digits that come with scikit-learn: real data, 8x8 pixels, that needs no network."""

from __future__ import annotations

import torch

from fastdl.data.dataset import ImageDataset, Split, stratified_choice

__all__ = ["load_digits"]

_TEST_EXAMPLES = 360
_SPLIT_SEED = 1998  # the year of the source: E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits, UCI


def load_digits() -> ImageDataset:
    """Return the 1,797 digits as uint8 images (N, 1, 8, 8): 1,437 for training and 360 for test, stratified.

    scikit-learn stores grey values of 0 to 16; they are scaled to 0 to 255. The division into training and test
    data is fixed, since the set comes with none.
    """
    from sklearn.datasets import load_digits as load_sklearn_digits

    bunch = load_sklearn_digits()
    images = (torch.from_numpy(bunch.images) * (255 / 16)).round().to(torch.uint8).unsqueeze(1)
    labels = torch.from_numpy(bunch.target).to(torch.int64)
    examples = Split(images, labels)
    test = stratified_choice(labels, _TEST_EXAMPLES, _SPLIT_SEED)
    keep = torch.ones(len(examples), dtype=torch.bool)
    keep[test] = False
    splits = {"train": examples.select(torch.nonzero(keep).flatten()), "test": examples.select(test)}
    return ImageDataset.from_splits("digits", splits, tuple(str(digit) for digit in range(10)))
