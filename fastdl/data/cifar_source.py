"""What the official CIFAR-10 and CIFAR-100 consist of: files, checksums, labels and counts.

A. Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009. https://www.cs.toronto.edu/~kriz/cifar.html
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from fastdl.data.cifar_classes import CIFAR10_CLASSES, CIFAR100_CLASSES

__all__ = ["CIFAR10", "CIFAR100", "CifarSource", "SplitSource"]


@dataclass(frozen=True)
class SplitSource:
    """One split: its pickles with their MD5, its length, and the SHA-256 of its decoded content.

    ``images_sha256`` is taken over the uint8 pixels in (N, 3, 32, 32) order and ``labels_sha256`` over little-endian
    int64 labels, so they hold for every encoding of the same data: pickles, and Parquet with PNG or WebP images.
    """

    pickles: Mapping[str, str]
    examples: int
    images_sha256: str
    labels_sha256: str


@dataclass(frozen=True)
class CifarSource:
    """One data set: where it comes from, how its files are called, and what they must hold."""

    name: str
    url: str
    archive: str
    archive_md5: str
    folder: str
    pickle_label: str
    parquet_label: str
    class_names: tuple[str, ...]
    splits: Mapping[str, SplitSource]


CIFAR10 = CifarSource(
    name="cifar10",
    url="https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",
    archive="cifar-10-python.tar.gz",
    archive_md5="c58f30108f718f92721af3b95e74349a",
    folder="cifar-10-batches-py",
    pickle_label="labels",
    parquet_label="label",
    class_names=CIFAR10_CLASSES,
    splits={
        "train": SplitSource(
            pickles={
                "data_batch_1": "c99cafc152244af753f735de768cd75f",
                "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
                "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
                "data_batch_4": "634d18415352ddfa80567beed471001a",
                "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
            },
            examples=50_000,
            images_sha256="9d5c2eddadb0deff02c14c350c0385aab7b1d5ff1edfeb4997c8dc8644960111",
            labels_sha256="f5cfe00b0f00968c0cc5ff3b1d2de51b10e33efa277c2986f4e0fa63e58c9f4f",
        ),
        "test": SplitSource(
            pickles={"test_batch": "40351d587109b95175f43aff81a1287e"},
            examples=10_000,
            images_sha256="177777c33ba79825320efa646ad04a94bdc3c80e4ebe3bd21724f8cdfd4b9d56",
            labels_sha256="cbb7365de8ed11f05cc4c3a1e7f78144127c5e851efd83762fb18202461230bb",
        ),
    },
)

CIFAR100 = CifarSource(
    name="cifar100",
    url="https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz",
    archive="cifar-100-python.tar.gz",
    archive_md5="eb9058c3a382ffc7106e4002c42a8d85",
    folder="cifar-100-python",
    pickle_label="fine_labels",
    parquet_label="fine_label",
    class_names=CIFAR100_CLASSES,
    splits={
        "train": SplitSource(
            pickles={"train": "16019d7e3df5f24257cddd939b257f8d"},
            examples=50_000,
            images_sha256="de64658905c6b161606e3649ddafce7cf86c7634a0cf9116d518e64ef46a33c5",
            labels_sha256="8bf4935e7c77a3096270043c6f3b221b6ecb9c63d1a08608e9af66cff17e977a",
        ),
        "test": SplitSource(
            pickles={"test": "f0ef6b0ae62326f3e7ffdfab6717acfc"},
            examples=10_000,
            images_sha256="83c56492b2c11211ad1bb2dbd4f2eef4170a0441e41a41f3039c3144b1f5a511",
            labels_sha256="80031c23f8300724c6fbc588e4bccbe41c6392041782148727bb497b0132c4ad",
        ),
    },
)
