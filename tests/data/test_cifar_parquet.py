"""CIFAR in Parquet: reading, caching, and errors that say what is wrong with which file."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fastdl.data import DataError, load_dataset
from fastdl.data import cifar_parquet as parquet_module
from fastdl.data.cifar import load_cifar
from fastdl.data.cifar_source import CIFAR10, CIFAR100
from tests.data.cifar_files import write_parquet
from tests.data.conftest import Small


def write_small(folder: Path, small: Small) -> None:
    write_parquet(folder / "train-00000-of-00001.parquet", small.train, small.labels["train"])
    write_parquet(folder / "test-00000-of-00001.parquet", small.test, small.labels["test"])


@pytest.mark.parametrize("place", [".", "cifar10"])
def test_pixels_and_labels_come_back(tmp_path: Path, small: Small, place: str) -> None:
    write_small(tmp_path / place, small)
    dataset = load_cifar(small.source, tmp_path, allow_download=False)
    np.testing.assert_array_equal(dataset.train.images.numpy(), small.train)
    np.testing.assert_array_equal(dataset.test.images.numpy(), small.test)
    assert dataset.train.labels.tolist() == small.labels["train"]
    assert dataset.class_names[3] == "cat"


def test_several_files_of_a_split_are_joined_in_order(tmp_path: Path, small: Small) -> None:
    write_small(tmp_path, small)
    (tmp_path / "train-00000-of-00001.parquet").unlink()
    write_parquet(tmp_path / "train-00000-of-00002.parquet", small.train[:10], small.labels["train"][:10])
    write_parquet(
        tmp_path / "train-00001-of-00002.parquet", small.train[10:], small.labels["train"][10:], image_column="img"
    )
    dataset = load_cifar(small.source, tmp_path, allow_download=False)
    np.testing.assert_array_equal(dataset.train.images.numpy(), small.train)


def test_images_are_decoded_once(tmp_path: Path, small: Small, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_small(tmp_path, small)
    first = load_cifar(small.source, tmp_path, allow_download=False)
    assert len(list(cache.glob("*.npz"))) == 2

    def never(*arguments: object) -> None:
        raise AssertionError("decoded again")

    monkeypatch.setattr(parquet_module, "_decode", never)
    second = load_cifar(small.source, tmp_path, allow_download=False)
    assert first.fingerprint == second.fingerprint


@pytest.mark.parametrize("damage", ["truncated", "flipped", "empty"])
def test_a_damaged_cache_is_made_anew(tmp_path: Path, small: Small, cache: Path, damage: str) -> None:
    write_small(tmp_path, small)
    load_cifar(small.source, tmp_path, allow_download=False)
    for file in cache.glob("*.npz"):
        content = bytearray(file.read_bytes())
        if damage == "flipped":
            content[len(content) // 2] ^= 1
        file.write_bytes({"truncated": content[:-100], "flipped": content, "empty": b""}[damage])
    dataset = load_cifar(small.source, tmp_path, allow_download=False)
    np.testing.assert_array_equal(dataset.train.images.numpy(), small.train)


def test_a_changed_file_is_not_served_from_the_cache(tmp_path: Path, small: Small) -> None:
    write_small(tmp_path, small)
    load_cifar(small.source, tmp_path, allow_download=False)
    write_parquet(tmp_path / "train-00000-of-00001.parquet", 255 - small.train, small.labels["train"])
    with pytest.raises(DataError, match="the official pixels of split 'train' of cifar10"):
        load_cifar(small.source, tmp_path, allow_download=False)


def test_a_cache_that_cannot_be_written_is_done_without(
    tmp_path: Path, small: Small, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_small(tmp_path / "data", small)
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setenv("FASTDL_CACHE", str(tmp_path / "file"))
    dataset = load_cifar(small.source, tmp_path / "data", allow_download=False)
    np.testing.assert_array_equal(dataset.train.images.numpy(), small.train)


@pytest.mark.parametrize("length", [0, 3, 100, -1])
def test_a_truncated_file_is_named(tmp_path: Path, small: Small, length: int) -> None:
    write_small(tmp_path / "cifar10", small)
    file = tmp_path / "cifar10" / "test-00000-of-00001.parquet"
    file.write_bytes(file.read_bytes()[:length])
    with pytest.raises(DataError, match="bytes that do not open") as caught:
        load_cifar(small.source, tmp_path, allow_download=False)
    assert caught.value.path == file


def test_images_that_do_not_decode_are_named_by_row(tmp_path: Path, small: Small) -> None:
    write_small(tmp_path, small)
    file = tmp_path / "test-00000-of-00001.parquet"
    entries = pq.read_table(file)["img"].to_pylist()
    entries[7]["bytes"] = entries[7]["bytes"][:60]
    pq.write_table(pa.table({"img": entries, "label": small.labels["test"]}), file)
    with pytest.raises(DataError, match="row 7 that does not decode") as caught:
        load_cifar(small.source, tmp_path, allow_download=False)
    assert caught.value.path == file


def test_images_of_another_size_are_refused(tmp_path: Path, small: Small) -> None:
    write_small(tmp_path, small)
    write_parquet(tmp_path / "test-00000-of-00001.parquet", small.test[:, :, :, :28], small.labels["test"])
    with pytest.raises(DataError, match=r"expected images of 32x32 pixels, found \(28, 32\) in row 0"):
        load_cifar(small.source, tmp_path, allow_download=False)


def test_labels_must_be_there_and_in_range(tmp_path: Path, small: Small) -> None:
    write_small(tmp_path, small)
    file = tmp_path / "test-00000-of-00001.parquet"
    write_parquet(file, small.test, [10, *small.labels["test"][1:]])
    with pytest.raises(DataError, match="labels from 0 to 9, found 0 to 10"):
        load_cifar(small.source, tmp_path, allow_download=False)
    write_parquet(file, small.test, [None, *small.labels["test"][1:]])  # type: ignore[list-item]
    with pytest.raises(DataError, match="1 rows without a label"):
        load_cifar(small.source, tmp_path, allow_download=False)


def test_the_other_data_set_under_this_ones_name_is_refused(tmp_path: Path, small: Small) -> None:
    for split, images in (("train", small.train), ("test", small.test)):
        write_parquet(tmp_path / "cifar10" / f"{split}.parquet", images, small.labels[split], label_column="fine_label")
    with pytest.raises(DataError, match=r"integers in column 'label', found the columns \['img', 'fine_label'\]"):
        load_cifar(small.source, tmp_path, allow_download=False)


def test_parquet_files_of_something_else_are_passed_over(tmp_path: Path, small: Small) -> None:
    for split in ("train", "test"):
        pq.write_table(pa.table({"text": ["a", "b"]}), tmp_path / f"{split}.parquet")
    with pytest.raises(DataError, match="found none of them"):
        load_cifar(small.source, tmp_path, allow_download=False)


def test_a_missing_split_is_named(tmp_path: Path, small: Small) -> None:
    write_small(tmp_path, small)
    (tmp_path / "test-00000-of-00001.parquet").unlink()
    with pytest.raises(DataError, match=r"a file test\*\.parquet of cifar10, found none"):
        load_cifar(small.source, tmp_path, allow_download=False)


def test_counts_pixels_and_labels_must_be_the_official_ones(tmp_path: Path, small: Small) -> None:
    write_small(tmp_path, small)
    train = small.source.splits["train"]
    for change, message in (
        ({"examples": 25}, "25 examples in split 'train' of cifar10, found 24"),
        ({"images_sha256": "0" * 64}, "the official pixels of split 'train'"),
        ({"labels_sha256": "0" * 64}, "the official labels of split 'train'"),
    ):
        splits = {**small.source.splits, "train": replace(train, **change)}
        with pytest.raises(DataError, match=message):
            load_cifar(replace(small.source, splits=splits), tmp_path, allow_download=False)


def test_class_names_in_another_order_are_refused(tmp_path: Path, small: Small) -> None:
    write_small(tmp_path, small)
    file = tmp_path / "test-00000-of-00001.parquet"
    names = '["airplane", "automobile", "cat", "bird", "deer", "dog", "frog", "horse", "ship", "truck"]'
    metadata = f'{{"info": {{"features": {{"label": {{"names": {names}}}}}}}}}'
    pq.write_table(pq.read_table(file).replace_schema_metadata({"huggingface": metadata}), file)
    with pytest.raises(DataError, match="class names of cifar10 in order, found 'cat' for 'bird'"):
        load_cifar(small.source, tmp_path, allow_download=False)


def _load_fingerprint(folder: Path, small: Small) -> str:
    _barrier.wait(60)  # type: ignore[name-defined]  # noqa: F821
    return load_cifar(small.source, folder, allow_download=False).fingerprint


def _set_barrier(barrier: object) -> None:
    globals()["_barrier"] = barrier


def test_processes_that_start_together_agree(tmp_path: Path, small: Small, cache: Path) -> None:
    write_small(tmp_path, small)
    expected = load_cifar(small.source, tmp_path, allow_download=False).fingerprint
    for file in cache.glob("*"):
        file.unlink()
    context = multiprocessing.get_context("spawn")
    with context.Pool(2, _set_barrier, (context.Barrier(2),)) as pool:
        assert set(pool.starmap(_load_fingerprint, [(tmp_path, small)] * 2)) == {expected}
    assert not list(cache.glob("*tmp*"))


SLOW_READER = """
import sys, time
from pathlib import Path
from fastdl.data import cifar_parquet, files
def slow(file, **arrays):
    file.write(b"half of it")
    file.flush()
    print("writing", flush=True)
    time.sleep(60)
cifar_parquet.np.savez = slow
from fastdl.data.cifar_source import CIFAR10
cifar_parquet.read_parquet(cifar_parquet.parquet_files(Path(sys.argv[1])), CIFAR10)
"""


def test_a_reader_killed_while_it_writes_the_cache_leaves_no_harm(tmp_path: Path, small: Small, cache: Path) -> None:
    write_small(tmp_path, small)
    process = subprocess.Popen([sys.executable, "-c", SLOW_READER, str(tmp_path)], stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"writing\n"
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    process.stdout.close()
    assert list(cache.glob(".*fastdl-tmp"))
    dataset = load_cifar(small.source, tmp_path, allow_download=False)
    np.testing.assert_array_equal(dataset.train.images.numpy(), small.train)
    assert not list(cache.glob(".*fastdl-tmp"))


@pytest.mark.parametrize("source", [CIFAR10, CIFAR100], ids=lambda source: source.name)
def test_class_names_are_those_of_the_official_metadata(real_data: Path, source: object) -> None:
    """The metadata is a pickle of strings and integers, so its bytes hold every name with its length before it."""
    name, file = ("cifar10", "batches.meta") if source is CIFAR10 else ("cifar100", "meta")
    content = (real_data / name / file).read_bytes()
    positions = [content.index(b"U" + bytes([len(label)]) + label.encode() + b"q") for label in source.class_names]  # type: ignore[attr-defined]
    assert positions == sorted(positions)
    assert len(positions) == (10 if source is CIFAR10 else 100)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_the_real_sets_are_read_and_checked(real_data: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTDL_DATA", str(real_data))
    dataset = load_dataset(name, allow_download=False)
    assert (len(dataset.train), len(dataset.test)) == (50_000, 10_000)
    per_class = 5000 if name == "cifar10" else 500
    assert dataset.train.labels.bincount().tolist() == [per_class] * len(dataset.class_names)
    if name == "cifar10":  # as it is quoted everywhere
        assert [round(value, 4) for value in dataset.mean] == [0.4914, 0.4822, 0.4465]
