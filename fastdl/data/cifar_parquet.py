"""CIFAR in Parquet files: a column of encoded images beside a column of labels, as the data-set hubs publish it.

Images are decoded once; the pixels are then kept in the cache folder under the SHA-256 of the Parquet file, so a
changed file is never served from an old cache.
"""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock

from fastdl.data.cifar_source import CifarSource
from fastdl.data.dataset import Split
from fastdl.data.errors import DataError
from fastdl.data.files import atomic_write, cache_directory, file_digest, remove_leftovers
from fastdl.data.progress import progress_bar

__all__ = ["parquet_files", "parquet_label", "read_parquet"]

_IMAGE_COLUMNS = ("img", "image")
_Array = np.ndarray[Any, np.dtype[Any]]


def parquet_files(folder: Path) -> dict[str, list[Path]]:
    """Return the Parquet files of ``folder`` by split, which their names begin with."""
    return {split: sorted(folder.glob(f"{split}*.parquet")) for split in ("train", "test")}


def parquet_label(path: Path) -> str | None:
    """Return the column of labels that tells the data sets apart: "label", "fine_label", or None for neither."""
    names = set(_open(path, "a Parquet file").schema_arrow.names)
    return next((column for column in ("fine_label", "label") if column in names), None)


def read_parquet(files: Mapping[str, list[Path]], source: CifarSource) -> dict[str, Split]:
    """Read all splits from Parquet files, from the cache where they were decoded before.

    Raises:
        DataError: a split has no file, or a file is truncated, has other columns, or holds images that do not decode
            to 32x32 RGB.
    """
    splits = {}
    for split_name, paths in files.items():
        if not paths:
            folder = next(path.parent for others in files.values() for path in others)
            raise DataError(folder, f"a file {split_name}*.parquet of {source.name}", "none")
        parts = [_read_file(path, source, f"{source.name} {split_name}") for path in paths]
        splits[split_name] = Split(torch.cat([part.images for part in parts]), torch.cat([p.labels for p in parts]))
    return splits


def _read_file(path: Path, source: CifarSource, description: str) -> Split:
    folder = cache_directory()
    cached = folder / f"{source.name}-{file_digest(path, 'sha256')[:32]}.npz"
    # Processes that start together decode once; the system releases the lock of one that is killed.
    lock = FileLock(cached.with_suffix(".lock"))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except OSError:
        # A folder that cannot be written is no reason to fail: decode, and do not keep the result.
        return _decode(path, source, description)
    try:
        if (split := _load_cached(cached)) is None:
            split = _decode(path, source, description)
            _store(cached, split)
        return split
    finally:
        lock.release()


def _load_cached(cached: Path) -> Split | None:
    """Return what the cache holds, or None if that is nothing, or is not what was written."""
    try:
        with cached.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            images, labels, digest = arrays["images"], arrays["labels"], str(arrays["digest"])
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None
    if _digest(images, labels) != digest:
        return None
    return Split(torch.from_numpy(images), torch.from_numpy(labels))


def _store(cached: Path, split: Split) -> None:
    images, labels = split.images.numpy(), split.labels.numpy()
    remove_leftovers(cached)
    # A full disk costs the next reader the time to decode, and nothing else.
    with suppress(OSError), atomic_write(cached) as file:
        np.savez(file, images=images, labels=labels, digest=np.array(_digest(images, labels)))


def _digest(images: _Array, labels: _Array) -> str:
    digest = hashlib.sha256(np.ascontiguousarray(images).data)
    digest.update(np.ascontiguousarray(labels).data)
    return digest.hexdigest()


def _open(path: Path, expected: str) -> Any:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pq.ParquetFile(path)
    except (pa.ArrowException, OSError) as error:
        raise DataError(path, expected, f"{path.stat().st_size:,} bytes that do not open: {error}") from error


def _decode(path: Path, source: CifarSource, description: str) -> Split:
    import pyarrow as pa
    from PIL import Image

    expected = f"a Parquet file with encoded images in column 'img' and integers in column {source.parquet_label!r}"
    file = _open(path, expected)
    names = file.schema_arrow.names
    image_column = next((column for column in _IMAGE_COLUMNS if column in names), None)
    if image_column is None or source.parquet_label not in names:
        raise DataError(path, expected, f"the columns {names}")
    count = file.metadata.num_rows
    images = np.empty((count, 32, 32, 3), dtype=np.uint8)
    labels = np.empty(count, dtype=np.int64)
    row = 0
    with progress_bar(f"Decoding {description}", count, "images") as advance:
        try:
            for batch in file.iter_batches(1000, columns=[image_column, source.parquet_label]):
                if (missing := batch.column(source.parquet_label).null_count) > 0:
                    raise DataError(path, expected, f"{missing} rows without a label")
                labels[row : row + len(batch)] = batch.column(source.parquet_label).to_numpy(zero_copy_only=False)
                for entry in batch.column(image_column):
                    with Image.open(io.BytesIO(entry["bytes"].as_py())) as image:
                        if image.size != (32, 32):
                            raise DataError(path, "images of 32x32 pixels", f"{image.size} in row {row}")
                        images[row] = np.asarray(image.convert("RGB"))
                    row += 1
                advance(len(batch))
        except (pa.ArrowException, OSError, TypeError, KeyError, SyntaxError) as error:
            raise DataError(path, expected, f"row {row} that does not decode: {error}") from error
    low, high = (int(labels.min()), int(labels.max())) if count else (0, 0)
    if low < 0 or high >= len(source.class_names):
        raise DataError(path, f"labels from 0 to {len(source.class_names) - 1}", f"{low} to {high}")
    _check_class_names(path, file.schema_arrow.metadata, source)
    planes = torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()
    return Split(planes, torch.from_numpy(labels))


def _check_class_names(path: Path, metadata: Mapping[bytes, bytes] | None, source: CifarSource) -> None:
    """Compare the class names in the file with the official ones, where the file names its classes at all."""
    try:
        features = json.loads((metadata or {})[b"huggingface"])["info"]["features"]
        names = tuple(features[source.parquet_label]["names"])
    except (KeyError, TypeError, ValueError):
        return
    if names != source.class_names:
        differing = next((pair for pair in zip(source.class_names, names, strict=False) if pair[0] != pair[1]), None)
        found = f"{differing[1]!r} for {differing[0]!r}" if differing else f"{len(names)} classes"
        raise DataError(path, f"the {len(source.class_names)} class names of {source.name} in order", found)
