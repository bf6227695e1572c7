"""Readers for real data sets of labelled images.

A data set is read whole into memory as uint8 tensors. "digits" comes with scikit-learn; "cifar10" and "cifar100" are
looked for under ``data_dir`` or ``$FASTDL_DATA`` and fetched from their official site where they are missing.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from fastdl.data.dataset import ImageDataset, Split, hold_out_validation, limit_training_examples
from fastdl.data.errors import DataError

__all__ = [
    "DATASETS",
    "DataError",
    "ImageDataset",
    "Split",
    "hold_out_validation",
    "limit_training_examples",
    "load_dataset",
]


def _digits(data_dir: Path | None, allow_download: bool) -> ImageDataset:
    from fastdl.data.digits import load_digits

    return load_digits()


def _cifar10(data_dir: Path | None, allow_download: bool) -> ImageDataset:
    from fastdl.data.cifar import load_cifar
    from fastdl.data.cifar_source import CIFAR10

    return load_cifar(CIFAR10, data_dir, allow_download=allow_download)


def _cifar100(data_dir: Path | None, allow_download: bool) -> ImageDataset:
    from fastdl.data.cifar import load_cifar
    from fastdl.data.cifar_source import CIFAR100

    return load_cifar(CIFAR100, data_dir, allow_download=allow_download)


_READERS: dict[str, Callable[[Path | None, bool], ImageDataset]] = {
    "digits": _digits,
    "cifar10": _cifar10,
    "cifar100": _cifar100,
}

DATASETS = tuple(_READERS)
"""Names that :func:`load_dataset` takes."""


def load_dataset(
    name: str, data_dir: str | os.PathLike[str] | None = None, *, allow_download: bool = True
) -> ImageDataset:
    """Load a data set by name.

    Args:
        name: one of ``DATASETS``.
        data_dir: folder to look in, ``$FASTDL_DATA`` by default. "digits" needs none.
        allow_download: fetch from the official site what is not found.

    Returns:
        The data set with the splits "train" and "test"; see :func:`hold_out_validation` for a third.

    Raises:
        ValueError: ``name`` is unknown.
        DataError: the data is missing, damaged, or not what the name says.
    """
    if name not in _READERS:
        raise ValueError(f"name must be one of {', '.join(DATASETS)}, got {name!r}")
    directory = data_dir if data_dir is not None else os.environ.get("FASTDL_DATA") or None
    return _READERS[name](Path(directory).expanduser() if directory is not None else None, allow_download)
