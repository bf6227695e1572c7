"""The official CIFAR files in Python's pickle format, read without giving them any power.

A pickle is a program: it may import any module and call anything in it. The official files need four names, all of
NumPy. Here even those four do not reach NumPy: they are bound to inert stand-ins which note the shape and the bytes of
a uint8 array, and every other name is refused.
"""

from __future__ import annotations

import hashlib
import io
import pickle
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch

from fastdl.data.cifar_source import CifarSource
from fastdl.data.dataset import Split
from fastdl.data.errors import DataError
from fastdl.data.files import file_digest

__all__ = ["parse_batch", "read_archive", "read_folder"]

_PIXELS = 3 * 32 * 32


class _ArrayType:
    """Stands for the type ``numpy.ndarray``, which the pickles name and never call."""

    __slots__ = ()


class _ElementType:
    """Stands for ``numpy.dtype('u1')``; its state (byte order and the like) says nothing more."""

    __slots__ = ()

    def __setstate__(self, state: object) -> None:
        pass


class _Array:
    """Stands for an array: takes NumPy's pickled state, which is (version, shape, dtype, column-major, bytes)."""

    __slots__ = ("values",)

    values: np.ndarray[Any, np.dtype[np.uint8]]

    def __setstate__(self, state: object) -> None:
        if not isinstance(state, tuple) or len(state) != 5:
            raise pickle.UnpicklingError("an array without NumPy's five-part state")
        _, shape, dtype, column_major, content = state
        if not isinstance(dtype, _ElementType) or column_major or not isinstance(content, str):
            raise pickle.UnpicklingError("an array that is not of uint8 in row-major order")
        self.values = np.frombuffer(content.encode("latin1"), dtype=np.uint8).reshape(shape)


class _Reconstruct:
    """Stands for ``numpy.core.multiarray._reconstruct``."""

    __slots__ = ()

    def __call__(self, subtype: object, shape: object, typecode: object) -> _Array:
        if not isinstance(subtype, _ArrayType):
            raise pickle.UnpicklingError("an array of a type other than numpy.ndarray")
        return _Array()


class _MakeElementType:
    """Stands for ``numpy.dtype``."""

    __slots__ = ()

    def __call__(self, name: object, align: object, copy: object) -> _ElementType:
        if name != "u1":
            raise pickle.UnpicklingError(f"an array of element type {name!r} in place of 'u1'")
        return _ElementType()


class _RestrictedUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> object:
        if (module, name) in {("numpy.core.multiarray", "_reconstruct"), ("numpy._core.multiarray", "_reconstruct")}:
            return _Reconstruct()
        if (module, name) == ("numpy", "ndarray"):
            return _ArrayType()
        if (module, name) == ("numpy", "dtype"):
            return _MakeElementType()
        raise pickle.UnpicklingError(f"a reference to {module}.{name}, which is refused")

    def persistent_load(self, pid: object) -> NoReturn:
        raise pickle.UnpicklingError("a persistent reference, which is refused")


def parse_batch(content: bytes, path: Path, label_key: str, class_count: int) -> Split:
    """Read one pickled batch: a dictionary with "data", uint8 (n, 3072), and a list of labels.

    Raises:
        DataError: the pickle names anything but a uint8 array, is damaged, or holds another structure.
    """
    expected = f"a pickled dictionary with 'data', a uint8 array (n, {_PIXELS}), and {label_key!r}, n labels"
    try:
        # Written by Python 2, whose strings come back one character per byte under latin1.
        batch = _RestrictedUnpickler(io.BytesIO(content), encoding="latin1").load()
    except Exception as error:
        # A damaged pickle raises nearly anything (KeyError, IndexError, EOFError, TypeError, UnicodeError, ...).
        raise DataError(path, expected, f"{error or type(error).__name__}") from error
    if not isinstance(batch, dict):
        raise DataError(path, expected, f"a pickled {type(batch).__name__}")
    data, labels = batch.get("data"), batch.get(label_key)
    values = getattr(data, "values", None) if isinstance(data, _Array) else None
    if values is None or not isinstance(labels, list):
        raise DataError(path, expected, f"a dictionary with the keys {sorted(map(str, batch))}")
    if values.ndim != 2 or values.shape[1] != _PIXELS or len(values) != len(labels):
        raise DataError(path, expected, f"an array {values.shape} and {len(labels)} labels")
    if not all(type(label) is int and 0 <= label < class_count for label in labels):
        raise DataError(path, f"labels that are integers from 0 to {class_count - 1}", "others among them")
    images = torch.from_numpy(values.copy()).reshape(-1, 3, 32, 32)
    return Split(images, torch.tensor(labels, dtype=torch.int64))


def read_folder(folder: Path, source: CifarSource) -> dict[str, Split]:
    """Read the unpacked official files from ``folder`` and check the MD5 of each."""

    def contents() -> Iterator[tuple[str, Path, bytes]]:
        for split in source.splits.values():
            for name in split.pickles:
                path = folder / name
                if not path.is_file():
                    raise DataError(path, f"a file of the official {source.name}", "no such file")
                yield name, path, path.read_bytes()

    return _read_batches(contents(), source)


def read_archive(archive: Path, source: CifarSource) -> dict[str, Split]:
    """Read the official ``.tar.gz`` without unpacking it, and check its MD5 and that of each file in it."""
    found = file_digest(archive, "md5")
    if found != source.archive_md5:
        size = f"{archive.stat().st_size:,} bytes"
        advice = f"The file is damaged, incomplete or another one; delete it, or get it anew from {source.url}"
        raise DataError(archive, f"MD5 {source.archive_md5}", f"MD5 {found} ({size})", advice)

    def contents() -> Iterator[tuple[str, Path, bytes]]:
        wanted = {f"{source.folder}/{name}": name for split in source.splits.values() for name in split.pickles}
        try:
            # "r|" reads front to back: members come in the order of the archive, and nothing is decompressed twice.
            with tarfile.open(archive, "r|gz") as tar:
                for member in tar:
                    file = tar.extractfile(member) if member.name in wanted else None
                    if file is not None:
                        yield wanted.pop(member.name), archive / member.name, file.read()
        except (tarfile.TarError, OSError, EOFError, zlib.error) as error:
            raise DataError(archive, "a tar archive compressed by gzip", str(error)) from error
        if wanted:
            raise DataError(archive, f"the members {', '.join(sorted(wanted))}", "an archive without them")

    return _read_batches(contents(), source)


def _read_batches(contents: Iterator[tuple[str, Path, bytes]], source: CifarSource) -> dict[str, Split]:
    checksums = {name: md5 for split in source.splits.values() for name, md5 in split.pickles.items()}
    batches = {}
    for name, path, content in contents:
        found = hashlib.md5(content, usedforsecurity=False).hexdigest()
        if found != checksums[name]:
            raise DataError(path, f"MD5 {checksums[name]}", f"MD5 {found} ({len(content):,} bytes)")
        batches[name] = parse_batch(content, path, source.pickle_label, len(source.class_names))
    return {
        split_name: Split(
            torch.cat([batches[name].images for name in split.pickles]),
            torch.cat([batches[name].labels for name in split.pickles]),
        )
        for split_name, split in source.splits.items()
    }
