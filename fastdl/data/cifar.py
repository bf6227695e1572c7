"""CIFAR-10 and CIFAR-100 from whatever form of them a folder holds, checked against the official content."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

from fastdl.data.cifar_parquet import parquet_files, parquet_label, read_parquet
from fastdl.data.cifar_pickle import read_archive, read_folder
from fastdl.data.cifar_source import CifarSource
from fastdl.data.dataset import ImageDataset, Split
from fastdl.data.download import download
from fastdl.data.errors import DataError
from fastdl.data.files import cache_directory

__all__ = ["load_cifar"]


def load_cifar(source: CifarSource, data_dir: Path | None, *, allow_download: bool = True) -> ImageDataset:
    """Load one of the two sets, from ``data_dir`` or the cache folder, or from its official site where it is missing.

    Under a folder DIR these are looked for, first in DIR/<name>, then in DIR itself: Parquet files of the set
    (``train*.parquet`` and ``test*.parquet``), the unpacked pickles in their official folder, the official
    ``.tar.gz``, and the pickles directly. The first that is found is read, and must be right.

    Args:
        source: which set.
        data_dir: the folder to search; downloads go there too. None searches the cache folder alone.
        allow_download: fetch the archive if there is nothing.

    Raises:
        DataError: nothing is found and nothing can be fetched, or what is found is not the official data.
    """
    roots = [root for root in (data_dir, cache_directory()) if root is not None]
    for root in roots:
        for folder in (root / source.name, root):
            if (splits := _read_any(folder, source)) is not None:
                return _checked(folder, splits, source)
    target = roots[0] / source.archive
    forms = f"{source.name}/train*.parquet and {source.name}/test*.parquet, {source.folder}/ or {source.archive}"
    wanted = f"{source.name} as {forms}"
    advice = f"Put {source.archive} (MD5 {source.archive_md5}) from {source.url} there"
    if not allow_download:
        raise DataError(roots[0], wanted, "none of them", advice)
    try:
        archive = download(source.url, target, source.archive_md5)
    except DataError:
        raise
    except OSError as error:
        found = f"none of them, and the download failed ({getattr(error, 'reason', None) or error})"
        raise DataError(roots[0], wanted, found, advice) from error
    return _checked(archive, read_archive(archive, source), source)


def _read_any(folder: Path, source: CifarSource) -> dict[str, Split] | None:
    """Read the first form of the set that ``folder`` holds, or return None where it holds none."""
    files = parquet_files(folder)
    first = next((path for paths in files.values() for path in paths), None)
    # A folder named after the set must hold the set; another folder may hold Parquet files of anything.
    if first and (folder.name == source.name or parquet_label(first) == source.parquet_label):
        return read_parquet(files, source)
    if (folder / source.folder).is_dir():
        return read_folder(folder / source.folder, source)
    if (folder / source.archive).is_file():
        return read_archive(folder / source.archive, source)
    first_pickle = next(iter(source.splits["train"].pickles))
    if folder.name in (source.name, source.folder) and (folder / first_pickle).is_file():
        return read_folder(folder, source)
    return None


def _checked(origin: Path, splits: Mapping[str, Split], source: CifarSource) -> ImageDataset:
    """Compare counts, pixels and labels with the official ones and build the data set."""
    for name, official in source.splits.items():
        split = splits[name]
        if len(split) != official.examples:
            raise DataError(
                origin, f"{official.examples:,} examples in split {name!r} of {source.name}", f"{len(split):,}"
            )
        for what, tensor, expected in (
            ("pixels", split.images, official.images_sha256),
            ("labels", split.labels, official.labels_sha256),
        ):
            found = hashlib.sha256(tensor.contiguous().numpy().data).hexdigest()
            if found != expected:
                raise DataError(
                    origin,
                    f"the official {what} of split {name!r} of {source.name} (SHA-256 {expected})",
                    f"SHA-256 {found}",
                )
    return ImageDataset.from_splits(source.name, splits, source.class_names)
