"""Fixtures: a source tree, a cache of the test's own, a compiler."""

import shutil
from pathlib import Path

import pytest

from fastdl.native.loader import Loader
from tests.native.harness import BINDINGS, HEADER, KERNEL, Processes, executable

VARIABLES = ("FASTDL_BUILD", "FASTDL_CACHE", "FASTDL_CPU_ARCH", "CXX", "MAX_JOBS")


@pytest.fixture(scope="session")
def compiler() -> str:
    """The system's C++ compiler; tests that compile are skipped where there is none."""
    for name in ("g++", "clang++", "c++"):
        found = shutil.which(name)
        if found:
            return found
    pytest.skip("no C++ compiler on this machine")


@pytest.fixture
def csrc(tmp_path: Path) -> Path:
    root = tmp_path / "csrc"
    (root / "cpu").mkdir(parents=True)
    (root / "bindings.cpp").write_text(BINDINGS)
    (root / "cpu" / "twice.h").write_text(HEADER)
    (root / "cpu" / "twice.cpp").write_text(KERNEL)
    return root


@pytest.fixture
def cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of the test's own, with a blank in its name; no other setting comes in from outside."""
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    folder = tmp_path / "a cache"
    monkeypatch.setenv("FASTDL_CACHE", str(folder))
    return folder


@pytest.fixture
def prebuilt(tmp_path: Path) -> Path:
    """Where a wheel would carry a library that was built ahead of time; empty."""
    return tmp_path / "prebuilt"


@pytest.fixture
def processes(csrc: Path, cache_folder: Path, prebuilt: Path, compiler: str) -> Processes:
    return Processes(csrc, prebuilt)


@pytest.fixture
def loader(csrc: Path, cache_folder: Path, prebuilt: Path) -> Loader:
    """For what ends before the library is loaded, which a process can do only once."""
    return Loader(csrc, prebuilt)


@pytest.fixture
def counting_compiler(tmp_path: Path, compiler: str) -> tuple[Path, Path]:
    """A compiler that notes each file it compiles, and waits for as long as a file named ``wait`` exists; its log."""
    log = tmp_path / "compiled"
    script = executable(
        tmp_path / "counting g++",
        'case "$*" in *" -c "*)\n'
        f'  echo "$*" >> "{log}"\n'
        f'  while [ -e "{tmp_path}/wait" ]; do sleep 0.05; done;;\n'
        "esac\n"
        f'exec "{compiler}" "$@"',
    )
    return script, log
