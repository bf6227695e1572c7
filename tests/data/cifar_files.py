"""Writes CIFAR files as their authors did: pickles of Python 2, the tar archive, and Parquet with encoded images."""

from __future__ import annotations

import hashlib
import io
import struct
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from fastdl.data.cifar_source import CIFAR10, CifarSource, SplitSource


class Python2Pickle:
    """Writes what Python 2's cPickle wrote under protocol 2, byte for byte.

    It gave memo numbers, from 1 on, to objects that anything besides the container refers to: containers, keys,
    elements of lists, globals and reduced objects, but no parts of tuples.
    """

    def __init__(self) -> None:
        self._parts = [b"\x80\x02"]
        self._memo = 1

    def raw(self, content: bytes) -> None:
        self._parts.append(content)

    def memoize(self) -> None:
        number, self._memo = self._memo, self._memo + 1
        self.raw(b"q" + bytes([number]) if number < 256 else b"r" + struct.pack("<i", number))

    def string(self, value: bytes, *, memoize: bool = True) -> None:
        short = len(value) < 256
        self.raw((b"U" + bytes([len(value)]) if short else b"T" + struct.pack("<i", len(value))) + value)
        if memoize:
            self.memoize()

    def integer(self, value: int) -> None:
        if 0 <= value < 256:
            self.raw(b"K" + bytes([value]))
        elif 0 <= value < 65536:
            self.raw(b"M" + struct.pack("<H", value))
        else:
            self.raw(b"J" + struct.pack("<i", value))

    def list(self, values: Sequence[int | bytes]) -> None:
        self.raw(b"]")
        self.memoize()
        for start in range(0, len(values), 1000):
            self.raw(b"(")
            for value in values[start : start + 1000]:
                if isinstance(value, bytes):
                    self.string(value)
                else:
                    self.integer(value)
            self.raw(b"e")

    def array(self, values: np.ndarray) -> None:
        self.raw(b"cnumpy.core.multiarray\n_reconstruct\n")
        self.memoize()
        self.raw(b"cnumpy\nndarray\n")
        self.memoize()
        self.integer(0)
        self.raw(b"\x85")
        self.string(b"b", memoize=False)
        self.raw(b"\x87R")
        self.memoize()
        self.raw(b"(")
        self.integer(1)
        for size in values.shape:
            self.integer(size)
        self.raw(b"\x86cnumpy\ndtype\n")
        self.memoize()
        self.string(b"u1", memoize=False)
        self.raw(b"K\x00K\x01\x87R")
        self.memoize()
        self.raw(b"(K\x03")
        self.string(b"|", memoize=False)
        self.raw(b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89")
        self.string(values.tobytes(), memoize=False)
        self.raw(b"tb")

    def content(self) -> bytes:
        return b"".join(self._parts)


def pickled_batch(
    images: np.ndarray, labels: Mapping[str, Sequence[int]], name: bytes, file_names: Sequence[bytes]
) -> bytes:
    """Return a batch as in the official files.

    Args:
        images: uint8 (n, 3, 32, 32).
        labels: lists of labels by key, as {"labels": [...]}; only the order of CIFAR-10's keys is the official one.
        name: the text under "batch_label".
        file_names: one per image.
    """
    writer = Python2Pickle()
    writer.raw(b"}")
    writer.memoize()
    writer.raw(b"(")
    writer.string(b"batch_label")
    writer.string(name)
    for key, values in labels.items():
        writer.string(key.encode())
        writer.list(list(values))
    writer.string(b"data")
    writer.array(images.reshape(len(images), -1))
    writer.string(b"filenames")
    writer.list(list(file_names))
    writer.raw(b"u.")
    return writer.content()


def small_images(count: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, 3, 32, 32), dtype=np.uint8)


def small_source(
    train: np.ndarray, test: np.ndarray, labels: Mapping[str, list[int]]
) -> tuple[CifarSource, dict[str, bytes]]:
    """Return a data set like CIFAR-10 with two training batches, and its files by name."""
    half = len(train) // 2
    pieces = {
        "data_batch_1": (train[:half], labels["train"][:half]),
        "data_batch_2": (train[half:], labels["train"][half:]),
        "test_batch": (test, labels["test"]),
    }
    files = {
        name: pickled_batch(images, {"labels": part}, b"a batch", [b"image.png"] * len(part))
        for name, (images, part) in pieces.items()
    }
    splits = {
        split: SplitSource(
            pickles={name: hashlib.md5(files[name]).hexdigest() for name in names},
            examples=len(images),
            images_sha256=hashlib.sha256(images.tobytes()).hexdigest(),
            labels_sha256=hashlib.sha256(np.array(labels[split], dtype="<i8").tobytes()).hexdigest(),
        )
        for split, images, names in (
            ("train", train, ["data_batch_1", "data_batch_2"]),
            ("test", test, ["test_batch"]),
        )
    }
    archive = make_archive({f"{CIFAR10.folder}/{name}": content for name, content in files.items()})
    return replace(CIFAR10, splits=splits, archive_md5=hashlib.md5(archive).hexdigest()), {
        **files,
        CIFAR10.archive: archive,
    }


def make_archive(members: Mapping[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def write_parquet(
    path: Path, images: np.ndarray, labels: Sequence[int], *, label_column: str = "label", image_column: str = "img"
) -> None:
    """Write images (n, 3, h, w) as PNG beside their labels."""
    entries = []
    for image in images:
        buffer = io.BytesIO()
        Image.fromarray(image.transpose(1, 2, 0)).save(buffer, "PNG")
        entries.append({"bytes": buffer.getvalue(), "path": "image.png"})
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({image_column: entries, label_column: pa.array(labels, pa.int64())}), path)
