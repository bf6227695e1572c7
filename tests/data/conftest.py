"""A cache folder of its own for every test, and a small data set in the forms that CIFAR comes in."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from fastdl.data.cifar_source import CifarSource
from tests.data.cifar_files import small_images, small_source

CHECKOUT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache folder, and no $FASTDL_DATA unless a test sets it."""
    monkeypatch.setenv("FASTDL_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("FASTDL_DATA", raising=False)
    return tmp_path / "cache" / "data"


@dataclass(frozen=True)
class Small:
    """24 training and 10 test images of random pixels, and the official files that would hold them."""

    train: np.ndarray
    test: np.ndarray
    labels: dict[str, list[int]]
    source: CifarSource
    files: dict[str, bytes]


@pytest.fixture
def small() -> Small:
    train, test = small_images(24, 1), small_images(10, 2)
    labels = {"train": [index % 10 for index in range(24)], "test": [9 - index for index in range(10)]}
    return Small(train, test, labels, *small_source(train, test, labels))


def find_real_data() -> Path | None:
    """The folder with the real sets: $FASTDL_DATA, or shared/data beside the checkout."""
    for folder in (os.environ.get("FASTDL_DATA"), CHECKOUT.parent / "shared" / "data"):
        if folder and (Path(folder) / "cifar10" / "train-00000-of-00001.parquet").is_file():
            return Path(folder)
    return None


REAL_DATA = find_real_data()


@pytest.fixture
def real_data() -> Path:
    if REAL_DATA is None:
        pytest.skip("CIFAR in Parquet is neither under $FASTDL_DATA nor under ../shared/data")
    return REAL_DATA
