"""The restricted reader of the official pickles: what it reads, and what it refuses."""

from __future__ import annotations

import hashlib
import os
import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fastdl.data import DataError
from fastdl.data.cifar import load_cifar
from fastdl.data.cifar_pickle import parse_batch, read_archive, read_folder
from fastdl.data.cifar_source import CIFAR10
from tests.data.cifar_files import make_archive, pickled_batch, small_images
from tests.data.conftest import Small

PATH = Path("data_batch_1")


def test_a_batch_of_python_2_is_read() -> None:
    images = small_images(5, 0)
    split = parse_batch(pickled_batch(images, {"labels": [0, 9, 3, 3, 1]}, b"x", [b"a.png"] * 5), PATH, "labels", 10)
    np.testing.assert_array_equal(split.images.numpy(), images)
    assert split.labels.tolist() == [0, 9, 3, 3, 1]


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_nothing_but_numpys_own_arrays_of_bytes_is_let_in(protocol: int) -> None:
    """A batch that today's pickle writes names more of Python (its codecs, its own dtype) and is refused."""
    content = pickle.dumps({"data": np.zeros((2, 3072), dtype=np.int64), "labels": [0, 1]}, protocol=protocol)
    with pytest.raises(DataError, match=r"refused|element type 'i8'"):
        parse_batch(content, PATH, "labels", 10)


class Command:
    """Runs a command when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_a_pickle_that_runs_a_command_is_refused_before_it_runs(tmp_path: Path, protocol: int) -> None:
    content = pickle.dumps({"data": Command(tmp_path / "proof"), "labels": [0]}, protocol=protocol)
    with pytest.raises(DataError, match=r"a reference to posix\.system, which is refused"):
        parse_batch(content, PATH, "labels", 10)
    assert not (tmp_path / "proof").exists()
    pickle.loads(content)
    assert (tmp_path / "proof").exists()  # the attack is a real one


@pytest.mark.parametrize(
    "name",
    ["builtins.eval", "builtins.getattr", "numpy.load", "numpy.core.multiarray.fromfile", "copyreg._reconstructor"],
)
def test_other_names_are_refused(name: str) -> None:
    module, _, attribute = name.rpartition(".")
    with pytest.raises(DataError, match=f"a reference to {name}, which is refused"):
        parse_batch(f"c{module}\n{attribute}\n.".encode(), PATH, "labels", 10)


def test_the_stand_ins_cannot_be_given_other_powers() -> None:
    """BUILD sets attributes on any object; on a stand-in it must fail, or the next file would meet a changed one."""
    content = b"\x80\x02cnumpy.core.multiarray\n_reconstruct\n}U\x08__call__K\x01sb."
    with pytest.raises(DataError, match="attribute"):
        parse_batch(content, PATH, "labels", 10)


def test_truncation_anywhere_is_an_error() -> None:
    content = pickled_batch(small_images(2, 0), {"labels": [0, 1]}, b"x", [b"a.png"] * 2)
    for length in [0, 1, 2, 10, 60, 120, 200, len(content) // 2, len(content) - 1]:
        with pytest.raises(DataError, match="data_batch_1: expected a pickled dictionary"):
            parse_batch(content[:length], PATH, "labels", 10)


@pytest.mark.parametrize(
    ("images", "labels", "found"),
    [
        (small_images(2, 0), {"labels": [0, 10]}, "labels that are integers from 0 to 9, found others"),
        (small_images(2, 0), {"labels": [0]}, r"an array \(2, 3072\) and 1 labels"),
        (small_images(2, 0)[:, :2], {"labels": [0, 1]}, r"an array \(2, 2048\) and 2 labels"),
        (small_images(2, 0), {"fine_labels": [0, 1]}, "a dictionary with the keys .*fine_labels"),
    ],
)
def test_another_structure_is_an_error_that_says_what_was_found(
    images: np.ndarray, labels: dict[str, list[int]], found: str
) -> None:
    with pytest.raises(DataError, match=found):
        parse_batch(pickled_batch(images, labels, b"x", [b"a.png"] * len(images)), PATH, "labels", 10)


def test_folder_and_archive_hold_the_same(tmp_path: Path, small: Small) -> None:
    folder = tmp_path / CIFAR10.folder
    folder.mkdir()
    for name, content in small.files.items():
        ((tmp_path if name == CIFAR10.archive else folder) / name).write_bytes(content)
    for splits in (read_folder(folder, small.source), read_archive(tmp_path / CIFAR10.archive, small.source)):
        np.testing.assert_array_equal(splits["train"].images.numpy(), small.train)
        np.testing.assert_array_equal(splits["test"].images.numpy(), small.test)
        assert splits["train"].labels.tolist() == small.labels["train"]


def test_a_changed_file_is_named_with_both_checksums(tmp_path: Path, small: Small) -> None:
    folder = tmp_path / CIFAR10.folder
    folder.mkdir()
    for name, content in small.files.items():
        (folder / name).write_bytes(content)
    damaged = bytearray(small.files["data_batch_2"])
    damaged[500] ^= 1
    (folder / "data_batch_2").write_bytes(damaged)
    with pytest.raises(DataError) as caught:
        load_cifar(small.source, tmp_path, allow_download=False)
    assert caught.value.path == folder / "data_batch_2"
    assert hashlib.md5(small.files["data_batch_2"]).hexdigest() in caught.value.expected
    assert hashlib.md5(damaged).hexdigest() in caught.value.found


def test_a_missing_file_is_named(tmp_path: Path, small: Small) -> None:
    folder = tmp_path / CIFAR10.folder
    folder.mkdir()
    (folder / "data_batch_1").write_bytes(small.files["data_batch_1"])
    with pytest.raises(DataError, match="data_batch_2: expected a file of the official cifar10, found no such file"):
        load_cifar(small.source, tmp_path, allow_download=False)


def test_a_truncated_archive_is_named_with_its_size(tmp_path: Path, small: Small) -> None:
    content = small.files[CIFAR10.archive]
    (tmp_path / CIFAR10.archive).write_bytes(content[:1000])
    with pytest.raises(DataError, match=r"cifar-10-python.tar.gz: expected MD5 .* found MD5 .* \(1,000 bytes\)"):
        load_cifar(small.source, tmp_path, allow_download=False)


def test_an_archive_with_the_right_sum_must_still_hold_the_files(tmp_path: Path, small: Small) -> None:
    for content, found in (
        (make_archive({f"{CIFAR10.folder}/test_batch": small.files["test_batch"]}), "the members .*data_batch_1"),
        (b"no archive at all", "a tar archive compressed by gzip"),
    ):
        (tmp_path / CIFAR10.archive).write_bytes(content)
        source = replace(small.source, archive_md5=hashlib.md5(content).hexdigest())
        with pytest.raises(DataError, match=found):
            load_cifar(source, tmp_path, allow_download=False)


def test_the_official_batch_is_written_and_read_bit_for_bit(real_data: Path) -> None:
    """The real test batch of CIFAR-10, made from the Parquet file, has the official MD5, and is read as a pickle."""
    import io

    import pyarrow.parquet as pq
    from PIL import Image

    table = pq.read_table(real_data / "cifar10" / "test-00000-of-00001.parquet")
    entries = table["img"].to_pylist()
    images = np.stack([np.asarray(Image.open(io.BytesIO(entry["bytes"]))) for entry in entries])
    labels = table["label"].to_pylist()
    planes = np.ascontiguousarray(images.transpose(0, 3, 1, 2))
    names = [entry["path"].encode() for entry in entries]
    content = pickled_batch(planes, {"labels": labels}, b"testing batch 1 of 1", names)
    assert hashlib.md5(content).hexdigest() == CIFAR10.splits["test"].pickles["test_batch"]
    split = parse_batch(content, PATH, "labels", 10)
    assert hashlib.sha256(split.images.numpy().data).hexdigest() == CIFAR10.splits["test"].images_sha256
    assert split.labels.tolist() == labels
