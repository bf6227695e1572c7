"""Loading, one process each: what is built, found, refused and said."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
import warnings
from pathlib import Path

import pytest

from fastdl.native import FastdlWarning, cache
from fastdl.native import build as building
from fastdl.native.ahead_of_time import build_prebuilt
from fastdl.native.loader import FAILURE, Loader
from tests.native.harness import LIBRARY, Processes, failing_compiler, find_no_ninja, only_entry, wait_for, works


def test_the_first_process_builds_and_the_second_finds(processes: Processes, cache_folder: Path) -> None:
    first = processes.run()
    assert works(first), first
    assert first["built_in_seconds"] > 0
    assert "compiling the native CPU kernels" in first["stderr"]
    assert first["reason"] == ""
    second = processes.run()
    assert works(second), second
    assert second["built_in_seconds"] is None
    assert second["stderr"] == ""
    assert second["path"] == first["path"] == str(only_entry(cache_folder) / LIBRARY)
    # Neither a compiler nor permission to build is needed for what is there.
    assert works(processes.run(FASTDL_BUILD="0"))
    assert works(processes.run(CXX="no-such-compiler"))


def test_eight_processes_at_once_build_once(
    processes: Processes, cache_folder: Path, counting_compiler: tuple[Path, Path]
) -> None:
    compiler, log = counting_compiler
    started = [processes.start(CXX=f"'{compiler}'") for _ in range(8)]
    outcomes = [processes.outcome(process) for process in started]
    assert all(works(outcome) for outcome in outcomes), outcomes
    compiled = log.read_text().splitlines()
    assert len(compiled) == 2, compiled  # two translation units, once each
    assert sum(outcome["built_in_seconds"] is not None for outcome in outcomes) == 1
    only_entry(cache_folder)


def test_eight_processes_share_one_failure(
    processes: Processes, csrc: Path, cache_folder: Path, counting_compiler: tuple[Path, Path], tmp_path: Path
) -> None:
    compiler, log = counting_compiler
    (csrc / "cpu" / "twice.cpp").write_text("#error on purpose\n")
    wait = tmp_path / "wait"
    wait.touch()
    started = [processes.start(CXX=f"'{compiler}'") for _ in range(4)]
    wait_for(lambda: processes.about_to_load() == 4 and log.exists(), "four processes and a compiler that starts")
    time.sleep(1.0)  # from there to the lock is a matter of milliseconds
    wait.unlink()
    outcomes = [processes.outcome(process) for process in started]
    assert all("on purpose" in outcome["reason"] and len(outcome["warnings"]) == 1 for outcome in outcomes)
    assert len([line for line in log.read_text().splitlines() if "twice.cpp" in line]) == 1
    # A later start tries again: what was wrong may have been mended outside the sources.
    processes.run(CXX=f"'{compiler}'")
    assert len([line for line in log.read_text().splitlines() if "twice.cpp" in line]) == 2


def test_a_process_killed_while_building_leaves_nothing_broken(
    processes: Processes, cache_folder: Path, counting_compiler: tuple[Path, Path], tmp_path: Path
) -> None:
    compiler, log = counting_compiler
    wait = tmp_path / "wait"
    wait.touch()
    killed = processes.start(CXX=f"'{compiler}'")
    try:
        wait_for(lambda: log.exists(), "a compiler that starts")
        killed.send_signal(signal.SIGKILL)
        killed.communicate()
        assert killed.returncode == -signal.SIGKILL
        assert list(cache_folder.glob(f"native/{building.BUILD_FOLDER_PREFIX}*"))
    finally:
        os.killpg(killed.pid, signal.SIGKILL)  # its ninja and compilers: this process's own group
    wait.unlink()
    outcome = processes.run(CXX=f"'{compiler}'")
    assert works(outcome), outcome
    assert outcome["built_in_seconds"] is not None
    assert not list(cache_folder.glob(f"native/{building.BUILD_FOLDER_PREFIX}*"))


@pytest.mark.parametrize("damage", ["one byte", "truncated", "empty", "no library", "no manifest", "torn manifest"])
def test_a_damaged_entry_does_not_count(loader: Loader, built: Path, damage: str) -> None:
    assert loader.status_without_building().path == built / LIBRARY
    harm(built, damage)
    looked = loader.status_without_building()
    assert not looked.available
    assert "Not built yet" in looked.reason


def test_a_damaged_entry_is_built_again(processes: Processes, loader: Loader, built: Path) -> None:
    harm(built, "truncated")
    outcome = processes.run()
    assert works(outcome), outcome
    assert outcome["built_in_seconds"] is not None
    assert loader.status_without_building().path == built / LIBRARY


def harm(entry: Path, damage: str) -> None:
    library, manifest = entry / LIBRARY, entry / cache.MANIFEST
    content = library.read_bytes()
    if damage == "one byte":
        library.write_bytes(content[:1000] + bytes([content[1000] ^ 1]) + content[1001:])
    elif damage == "truncated":
        library.write_bytes(content[: len(content) // 2])
    elif damage == "empty":
        library.write_bytes(b"")
    elif damage == "no library":
        library.unlink()
    elif damage == "no manifest":
        manifest.unlink()
    else:
        manifest.write_text(manifest.read_text()[:100])


def test_a_library_for_another_cpu_is_not_loaded(processes: Processes, built: Path) -> None:
    manifest = json.loads((built / cache.MANIFEST).read_text())
    manifest["required_features"].append("avx1024")
    (built / cache.MANIFEST).write_text(json.dumps(manifest))
    outcome = processes.run()
    assert not outcome["available"]
    assert "needs CPU instructions that this machine lacks: avx1024" in outcome["reason"]
    assert "FASTDL_CPU_ARCH" in outcome["reason"]
    assert [category for category, _ in outcome["warnings"]] == ["FastdlWarning"]
    assert outcome["warnings"][0][1].endswith(outcome["reason"])


def test_a_library_that_does_not_load_is_reported(processes: Processes, built: Path) -> None:
    manifest = json.loads((built / cache.MANIFEST).read_text())
    content = b"\x7fELF, or not quite"
    manifest["size"] = len(content)
    (built / LIBRARY).write_bytes(content)
    manifest["sha256"] = cache.file_digest(built / LIBRARY)
    (built / cache.MANIFEST).write_text(json.dumps(manifest))
    outcome = processes.run()
    assert not outcome["available"]
    assert f"{built / LIBRARY} does not load" in outcome["reason"]
    assert f"Remove the folder {built}" in outcome["reason"]
    assert len(outcome["warnings"]) == 1


def test_without_permission_to_build_nothing_is_built(
    loader: Loader, cache_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FASTDL_BUILD", "0")
    with pytest.warns(FastdlWarning, match="FASTDL_BUILD=0 forbids building") as caught:
        status = loader.load()
    assert not status.available
    assert str(cache_folder) in status.reason
    assert not cache_folder.exists()
    assert len(caught) == 1


@pytest.mark.parametrize("missing", ["compiler", "ninja", "sources"])
def test_what_is_missing_is_told_once_and_cured(
    loader: Loader, csrc: Path, tmp_path: Path, missing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if missing == "compiler":
        monkeypatch.setenv("PATH", str(tmp_path))
        cause, cure = "No C++ compiler was found", "Install"
    elif missing == "ninja":
        monkeypatch.setattr("fastdl.native.build.find_ninja", find_no_ninja)
        cause, cure = "ninja was not found", "pip install ninja"
    else:
        for path in [*csrc.glob("*.cpp"), *csrc.glob("cpu/*.cpp")]:
            path.unlink()
        cause, cure = "no C++ source", "Install fastdl again"
    with pytest.warns(FastdlWarning) as caught:
        statuses = [loader.load() for _ in range(3)]
    assert len(caught) == 1
    assert cause in str(caught[0].message)
    assert cure in str(caught[0].message)
    assert "reference" in str(caught[0].message)
    assert all(status is statuses[0] for status in statuses)
    assert not statuses[0].available
    assert loader.status_without_building() is statuses[0]


def test_no_folder_to_write_to(loader: Loader, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a file").write_text("")
    places = [tmp_path / "a file" / "cache", tmp_path / "a file" / "temporary"]
    monkeypatch.setattr("fastdl.native.cache.candidate_roots", lambda: places)
    with pytest.warns(FastdlWarning, match="No cache folder can be written"):
        status = loader.load()
    assert all(str(place) in status.reason for place in places)
    assert "FASTDL_CACHE" in status.reason


def test_an_unwritable_cache_is_replaced(processes: Processes, tmp_path: Path) -> None:
    (tmp_path / "a file").write_text("")
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    outcome = processes.run(FASTDL_CACHE=str(tmp_path / "a file" / "cache"), TMPDIR=str(temporary))
    assert works(outcome), outcome
    assert Path(outcome["path"]).is_relative_to(temporary)


def test_an_error_nobody_thought_of_costs_only_the_library(loader: Loader, monkeypatch: pytest.MonkeyPatch) -> None:
    def explode() -> None:
        raise ZeroDivisionError("unthinkable")

    monkeypatch.setattr("fastdl.native.loader.torch_installation", explode)
    assert "ZeroDivisionError: unthinkable" in loader.status_without_building().reason
    with pytest.warns(FastdlWarning, match="unthinkable"):
        assert not loader.load().available


def test_asking_builds_nothing_and_warns_of_nothing(loader: Loader, cache_folder: Path, compiler: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        status = loader.status_without_building()
    assert not status.available
    assert "Not built yet" in status.reason
    assert not cache_folder.exists()


def test_threads_that_load_at_once_warn_once(loader: Loader, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTDL_BUILD", "0")
    statuses: list[object] = []
    start = threading.Barrier(8)

    def load() -> None:
        start.wait()
        statuses.append(loader.load())

    threads = [threading.Thread(target=load) for _ in range(8)]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(caught) == 1
    assert len(statuses) == 8
    assert all(status is statuses[0] for status in statuses)


def test_a_library_built_ahead_of_time_is_preferred(
    processes: Processes, csrc: Path, prebuilt: Path, cache_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FASTDL_CPU_ARCH", "x86-64-v3")
    build_prebuilt(csrc, prebuilt)
    monkeypatch.delenv("FASTDL_CPU_ARCH")
    outcome = processes.run(PATH="")  # no compiler is needed
    assert works(outcome), outcome
    assert outcome["path"] == str(prebuilt / LIBRARY)
    assert not cache_folder.exists()
    # Another architecture is asked for by name: that one is built.
    asked = processes.run(FASTDL_CPU_ARCH="x86-64")
    assert works(asked), asked
    assert Path(asked["path"]).is_relative_to(cache_folder)


@pytest.mark.parametrize("obstacle", ["features", "damaged", "other sources", "does not load"])
def test_a_library_built_ahead_of_time_that_does_not_fit_is_passed_over(
    processes: Processes, csrc: Path, prebuilt: Path, cache_folder: Path, built: Path, obstacle: str
) -> None:
    built.rename(prebuilt)
    manifest = json.loads((prebuilt / cache.MANIFEST).read_text())
    library = prebuilt / LIBRARY
    if obstacle == "features":
        manifest["required_features"].append("avx1024")
    elif obstacle == "damaged":
        library.write_bytes(library.read_bytes()[:-1])
    elif obstacle == "other sources":
        (csrc / "cpu" / "twice.h").write_text((csrc / "cpu" / "twice.h").read_text() + "\n")
    else:
        library.write_bytes(b"\x7fELF")
        manifest["size"], manifest["sha256"] = 4, cache.file_digest(library)
    (prebuilt / cache.MANIFEST).write_text(json.dumps(manifest))
    looked = Loader(csrc, prebuilt).status_without_building()
    assert looked.path == (library if obstacle == "does not load" else None)
    if obstacle in ("features", "does not load"):
        outcome = processes.run(CXX="no-such-compiler")
        assert not outcome["available"]
        assert ("avx1024" if obstacle == "features" else "does not load") in outcome["reason"]
        assert "no-such-compiler" in outcome["reason"]
        assert len(outcome["warnings"]) == 1
    if obstacle == "does not load":
        outcome = processes.run()
        assert works(outcome), outcome
        assert Path(outcome["path"]).is_relative_to(cache_folder)


def test_a_failure_is_forgotten_after_a_success(
    processes: Processes, compiler: str, cache_folder: Path, tmp_path: Path
) -> None:
    switch = tmp_path / "broken"
    switch.touch()
    flaky = failing_compiler(tmp_path / "flaky", compiler, "error: flaky", while_exists=switch)
    failed = processes.run(CXX=str(flaky))
    assert "error: flaky" in failed["reason"]
    entry = only_entry(cache_folder)
    assert (entry / FAILURE).is_file()
    switch.unlink()
    outcome = processes.run(CXX=str(flaky))
    assert works(outcome), outcome
    assert sorted(path.name for path in entry.iterdir()) == sorted([LIBRARY, cache.MANIFEST])


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_fork_waits_for_another_threads_load() -> None:
    """A child that is forked while some lock is held for loading could never take that lock."""
    code = """
import os, threading, time, warnings
warnings.simplefilter("ignore", DeprecationWarning)
from fastdl.native import loader

lock, loading = threading.Lock(), threading.Event()

def load(self):
    with lock:
        loading.set()
        time.sleep(0.5)
    return loader.NativeStatus(True)

loader.Loader._load = load
thread = threading.Thread(target=loader.Loader().load)
thread.start()
loading.wait()
child = os.fork()
if child == 0:
    free = lock.acquire(timeout=10)
    if free:
        lock.release()
    os._exit(0 if free and loader.Loader().load().available else 1)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
thread.join()
print(loader.Loader().load().available)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.split() == ["True"], done.stderr
