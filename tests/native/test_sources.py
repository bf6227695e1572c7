from pathlib import Path

import pytest

from fastdl.native.sources import find_csrc, read_sources
from fastdl.native.status import NativeUnavailableError


def test_units_are_the_bindings_and_the_cpu_kernels(csrc: Path) -> None:
    (csrc / "cuda").mkdir()
    (csrc / "cuda" / "twice.cu").write_text("")
    (csrc / "cpu" / ".#twice.cpp").write_text("an editor's lock")
    sources = read_sources(csrc)
    assert [unit.relative_to(csrc).as_posix() for unit in sources.units] == ["bindings.cpp", "cpu/twice.cpp"]


@pytest.mark.parametrize("file", ["bindings.cpp", "cpu/twice.cpp", "cpu/twice.h"])
def test_digest_changes_with_every_source_and_header(csrc: Path, file: str) -> None:
    before = read_sources(csrc).digest
    assert read_sources(csrc).digest == before
    (csrc / file).write_text((csrc / file).read_text() + "// changed\n")
    assert read_sources(csrc).digest != before


def test_digest_knows_names_and_boundaries(csrc: Path) -> None:
    before = read_sources(csrc).digest
    (csrc / "cpu" / "twice.h").rename(csrc / "cpu" / "two.h")
    renamed = read_sources(csrc).digest
    (csrc / "cpu" / "empty.h").write_text("")
    assert len({before, renamed, read_sources(csrc).digest}) == 3


def test_a_folder_without_sources_is_an_error_that_names_it(tmp_path: Path) -> None:
    with pytest.raises(NativeUnavailableError, match=str(tmp_path)):
        read_sources(tmp_path)


def test_the_package_finds_its_own_sources() -> None:
    assert (find_csrc() / "bindings.cpp").is_file()


def test_the_sources_use_no_name_that_the_oldest_torch_lacks() -> None:
    """Found by compiling against the headers of torch 2.11; the other names in use are in it."""
    newer = ("STABLE_TORCH_ERROR_CODE_CHECK", "torch_stream_native_handle")
    sources = [path for path in find_csrc().rglob("*") if path.suffix in (".h", ".cpp", ".cu", ".cuh")]
    found = {path.name: name for path in sources for name in newer if name in path.read_text(encoding="utf-8")}
    assert found == {}
