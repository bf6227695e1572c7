"""Builds that are not loaded: what they leave, and what they say when they fail."""

import platform
from pathlib import Path

import pytest

from fastdl.native import build as building
from fastdl.native import cache
from fastdl.native.loader import Loader, Search
from fastdl.native.sources import read_sources
from fastdl.native.status import NativeUnavailableError
from fastdl.native.targets import TARGETS
from fastdl.native.toolchain import torch_installation
from tests.native.harness import LIBRARY, executable, failing_compiler


@pytest.fixture(autouse=True)
def _needs_a_compiler(compiler: str, cache_folder: Path) -> None:
    """Every build here is real, and into the test's own cache."""


def recipe(csrc: Path, arch: str = "native") -> building.Recipe:
    target = TARGETS["cpu"]
    return building.Recipe(target, read_sources(csrc), arch, torch_installation(), target.tools())


def test_a_build_leaves_the_library_and_its_manifest_and_says_what_it_does(
    csrc: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    entry = tmp_path / "native" / "key"
    manifest = building.build(recipe(csrc), "key", entry)
    assert sorted(path.name for path in entry.iterdir()) == sorted([LIBRARY, cache.MANIFEST])
    assert [path.name for path in entry.parent.iterdir()] == ["key"]
    assert cache.read_manifest(entry) == manifest
    assert cache.is_whole(entry, manifest)
    assert manifest.source_digest == read_sources(csrc).digest
    output, errors = capfd.readouterr()
    assert output == ""
    assert f"compiling the native CPU kernels into {entry.parent}" in errors
    assert "compiled the native CPU kernels after" in errors


def test_only_this_hosts_abandoned_builds_are_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    native = tmp_path / "native"
    native.mkdir()
    for host in ("here", "there"):
        monkeypatch.setattr("platform.node", lambda host=host: f"{host}.example")
        (native / f"{building._build_folder_prefix('key')}x").mkdir()
    monkeypatch.setattr("platform.node", lambda: "here.example")
    building.remove_abandoned(tmp_path, "key")
    assert [path.name for path in native.iterdir()] == [f"{building.BUILD_FOLDER_PREFIX}key-thereexample-x"]


def test_paths_with_blanks_colons_and_dollars_are_built(tmp_path: Path, csrc: Path) -> None:
    odd = tmp_path / "a folder: $HOME & 'more'"
    csrc.rename(odd)
    assert building.build(recipe(odd), "key", tmp_path / "native" / "key").size > 0


def test_a_compilers_error_is_shown_and_logged(loader: Loader, csrc: Path, cache_folder: Path) -> None:
    (csrc / "cpu" / "twice.cpp").write_text("int broken = no_such_name;\n")
    with pytest.warns(match="no_such_name"):
        status = loader.load()
    assert not status.available
    assert "no_such_name" in status.reason
    assert "CXX" in status.reason
    logs = list(cache_folder.glob(f"native/*/{building.LOG}"))
    assert len(logs) == 1
    assert str(logs[0]) in status.reason
    assert "no_such_name" in logs[0].read_text()
    assert not list(cache_folder.glob(f"native/{building.BUILD_FOLDER_PREFIX}*"))


def test_a_mended_source_is_built_and_the_log_goes(csrc: Path, tmp_path: Path) -> None:
    entry = tmp_path / "native" / "key"
    good = (csrc / "cpu" / "twice.cpp").read_text()
    (csrc / "cpu" / "twice.cpp").write_text("#error broken\n")
    with pytest.raises(NativeUnavailableError, match="broken"):
        building.build(recipe(csrc), "key", entry)
    assert (entry / building.LOG).is_file()
    (csrc / "cpu" / "twice.cpp").write_text(good)
    building.build(recipe(csrc), "key", entry)
    assert not (entry / building.LOG).exists()


def test_a_full_disk_is_told_from_a_compilers_error(
    loader: Loader, tmp_path: Path, compiler: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    message = "fatal error: error writing to /tmp/cc.s: No space left on device"
    full = failing_compiler(tmp_path / "full", compiler, message)
    monkeypatch.setenv("CXX", str(full))
    with pytest.warns(match="disk is full"):
        status = loader.load()
    assert "The disk is full" in status.reason
    assert "FASTDL_CACHE" in status.reason


def test_a_library_that_cannot_be_written_names_the_folder(csrc: Path, tmp_path: Path) -> None:
    (tmp_path / "a file").write_text("")
    with pytest.raises(NativeUnavailableError, match=r"a file.*FASTDL_CACHE"):
        building.build(recipe(csrc), "key", tmp_path / "a file" / "native" / "key")


@pytest.mark.skipif(platform.machine() != "x86_64", reason="levels of x86-64")
def test_an_architecture_that_this_machine_lacks_is_refused_before_compiling(
    loader: Loader, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FASTDL_CPU_ARCH", "x86-64-v3")
    monkeypatch.setattr("fastdl.native.targets.machine_features", lambda: frozenset({"avx", "pni"}))
    with pytest.warns(match="lacks"):
        status = loader.load()
    assert "FASTDL_CPU_ARCH=x86-64-v3 needs CPU instructions that this machine lacks" in status.reason
    assert "avx2" in status.reason
    assert "compiling" not in capfd.readouterr().err


def test_the_key_changes_with_all_that_goes_into_a_build(
    csrc: Path, prebuilt: Path, tmp_path: Path, compiler: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def key() -> str:
        search = Search(csrc, prebuilt)
        return search.key(search.require_tools())

    first = key()
    assert key() == first
    keys = {"as it is": first}
    with monkeypatch.context() as changed:
        changed.setenv("FASTDL_CPU_ARCH", "x86-64-v3")
        keys["architecture"] = key()
    with monkeypatch.context() as changed:
        changed.setattr("fastdl.native.toolchain.COMPILE_FLAGS", ("-O0", "-fPIC"))
        keys["flags"] = key()
    with monkeypatch.context() as changed:
        wrapper = executable(tmp_path / "wrapper", f'exec {compiler} "$@"')
        changed.setenv("CXX", str(wrapper))
        keys["compiler"] = key()
    with monkeypatch.context() as changed:
        changed.setattr("torch.__version__", "2.99.0")
        keys["torch"] = key()
    with monkeypatch.context() as changed:
        changed.setattr("fastdl.native.targets.machine_features", lambda: frozenset({"avx"}))
        keys["machine"] = key()
        changed.setenv("FASTDL_CPU_ARCH", "x86-64-v3")
        assert key() == keys["architecture"]  # a named architecture is the same on every machine
    (csrc / "cpu" / "twice.h").write_text((csrc / "cpu" / "twice.h").read_text() + "\n")
    keys["sources"] = key()
    assert len(set(keys.values())) == len(keys)
    assert len(first) == 32
