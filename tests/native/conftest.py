"""Fixtures: a source tree, a cache of the test's own, a compiler."""

import shutil
from pathlib import Path

import pytest

from fastdl.native.loader import Library, Loader, Search
from tests.native.harness import Processes, executable, write_sources

VARIABLES = ("FASTDL_BUILD", "FASTDL_CACHE", "FASTDL_CPU_ARCH", "CXX", "MAX_JOBS")


@pytest.fixture
def csrc(tmp_path: Path) -> Path:
    return write_sources(tmp_path / "csrc")


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
def processes(csrc: Path, cache_folder: Path, prebuilt: Path, compiler: str, tmp_path: Path) -> Processes:
    return Processes(csrc, prebuilt, tmp_path)


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


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory, compiler: str) -> Library:
    """What is built from the test's source tree: compiled once in a session, and never loaded by its process."""
    folder = tmp_path_factory.mktemp("library")
    with pytest.MonkeyPatch.context() as environment:
        for name in VARIABLES:
            environment.delenv(name, raising=False)
        environment.setenv("FASTDL_CACHE", str(folder / "cache"))
        return Search(write_sources(folder / "csrc"), folder / "none").build()


@pytest.fixture
def built(library: Library, cache_folder: Path) -> Path:
    """The entry of the test's own cache, as a first process would leave it."""
    entry = cache_folder / "native" / library.entry.name
    shutil.copytree(library.entry, entry)
    return entry
