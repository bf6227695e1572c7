import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from fastdl.native import cache
from fastdl.native.status import NativeUnavailableError
from tests.native.harness import a_manifest


def an_entry(root: Path, name: str, *, used_ago: float = 0.0, content: bytes = b"library") -> Path:
    entry = root / "native" / name
    entry.mkdir(parents=True)
    (entry / "libfastdl_cpu.so").write_bytes(content)
    cache.write_manifest(entry, a_manifest(size=len(content), sha256=hashlib.sha256(content).hexdigest()))
    then = time.time() - used_ago
    os.utime(entry / cache.MANIFEST, (then, then))
    return entry


def test_the_cache_folder_follows_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTDL_CACHE", str(tmp_path / "asked"))
    assert cache.candidate_roots()[0] == tmp_path / "asked"
    monkeypatch.delenv("FASTDL_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache.candidate_roots()[0] == tmp_path / "xdg" / "fastdl"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache.candidate_roots()[0] == tmp_path / ".cache" / "fastdl"
    monkeypatch.setenv("FASTDL_CACHE", "~no-such-user/cache")
    assert set(cache.candidate_roots()) == {cache.candidate_roots()[1]}


def test_a_manifest_comes_back_as_it_was_written(tmp_path: Path) -> None:
    manifest = a_manifest(required_features=("avx2", "fma"))
    cache.write_manifest(tmp_path, manifest)
    assert cache.read_manifest(tmp_path) == manifest
    assert [path.name for path in tmp_path.iterdir()] == [cache.MANIFEST]


@pytest.mark.parametrize("damage", ["missing", "torn", "no object", "key missing", "other format", "path outside"])
def test_a_manifest_that_is_not_whole_does_not_count(tmp_path: Path, damage: str) -> None:
    cache.write_manifest(tmp_path, a_manifest())
    path = tmp_path / cache.MANIFEST
    content: dict[str, Any] = json.loads(path.read_text())
    if damage == "missing":
        path.unlink()
    elif damage == "torn":
        path.write_text(path.read_text()[:40])
    elif damage == "no object":
        path.write_text("[1, 2]")
    elif damage == "key missing":
        path.write_text(json.dumps({key: value for key, value in content.items() if key != "sha256"}))
    elif damage == "other format":
        path.write_text(json.dumps({**content, "format": 99}))
    else:
        path.write_text(json.dumps({**content, "library": "../elsewhere.so"}))
    assert cache.read_manifest(tmp_path) is None


def test_a_library_is_whole_only_byte_for_byte(tmp_path: Path) -> None:
    entry = an_entry(tmp_path, "key")
    manifest = cache.read_manifest(entry)
    assert manifest is not None
    assert cache.is_whole(entry, manifest)
    (entry / "libfastdl_cpu.so").write_bytes(b"librarY")
    assert not cache.is_whole(entry, manifest)
    (entry / "libfastdl_cpu.so").write_bytes(b"libr")
    assert not cache.is_whole(entry, manifest)
    (entry / "libfastdl_cpu.so").unlink()
    assert not cache.is_whole(entry, manifest)


def test_an_unwritable_cache_gives_way_to_a_private_temporary_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a file").write_text("")
    monkeypatch.setenv("FASTDL_CACHE", str(tmp_path / "a file" / "cache"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    root = cache.writable_root()
    assert root.parent == tmp_path
    assert root.stat().st_mode & 0o777 == 0o700
    assert root in cache.readable_roots()
    # Where others may write, they may have put a library of their own.
    root.chmod(0o777)
    assert root not in cache.readable_roots()
    with pytest.raises(NativeUnavailableError, match=r"a file.*FASTDL_CACHE"):
        cache.writable_root()


def test_pruning_keeps_the_last_used_and_the_recent(tmp_path: Path) -> None:
    days = 24 * 3600.0
    old = [an_entry(tmp_path, f"old-{age}", used_ago=age * days) for age in range(2, 12)]
    recent = [an_entry(tmp_path, f"recent-{index}", used_ago=60.0 * index) for index in range(4)]
    unfinished = tmp_path / "native" / "failed"
    unfinished.mkdir()
    (unfinished / "build.log").write_text("error")
    os.utime(unfinished, (time.time() - 30 * days,) * 2)
    removed = cache.prune(tmp_path, keep=recent[0])
    assert sorted(removed) == sorted([*old[cache.KEEP_ENTRIES - len(recent) :], unfinished])
    assert all(entry.is_dir() for entry in [*recent, *old[: cache.KEEP_ENTRIES - len(recent)]])
    assert not any(entry.exists() for entry in removed)


def test_pruning_spares_what_another_process_uses(tmp_path: Path) -> None:
    entries = [an_entry(tmp_path, f"old-{age}", used_ago=(10 + age) * 24 * 3600.0) for age in range(10)]
    used, unused = entries[-1], entries[-2]
    holding = (
        "import sys, time; from pathlib import Path; from fastdl.native import cache; "
        "assert cache.hold(Path(sys.argv[1])); print('held', flush=True); time.sleep(120)"
    )
    process = subprocess.Popen([sys.executable, "-c", holding, str(used)], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        then = time.time() - 30 * 24 * 3600.0
        os.utime(used / cache.MANIFEST, (then, then))  # as if it had been running for a month
        assert cache.prune(tmp_path, keep=entries[0]) == [unused]
        assert (used / "libfastdl_cpu.so").is_file()
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
    assert cache.prune(tmp_path, keep=entries[0]) == [used]  # the process is gone


def test_an_entry_that_is_being_removed_cannot_be_held(tmp_path: Path) -> None:
    import fcntl

    entry = an_entry(tmp_path, "key")
    with (entry / cache.MANIFEST).open() as manifest:
        fcntl.flock(manifest, fcntl.LOCK_EX)
        assert not cache.hold(entry)
    assert cache.hold(entry)
    assert not cache.hold(tmp_path / "native" / "gone")
