"""The wheel: what is in it, how it is made, and that it works where there is nothing else of the repository."""

import json
import platform
import re
import shutil
import sys
import tarfile
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest

import fastdl
from fastdl.inspection import cuda_code
from tests.native.harness import executable, failing_compiler, write_sources
from tests.packaging.conftest import Build
from tests.packaging.harness import ROOT, run

FORWARD_AND_BACKWARD = """
import sys
import torch
import fastdl

x = torch.randn(2, 8, 5, 7, requires_grad=True)
weight, bias = (torch.randn(8, requires_grad=True) for _ in range(2))
for backend in ("reference", "auto"):
    with fastdl.use_backend(backend):
        ours = fastdl.ops.group_norm(x, 4, weight, bias, activation="silu")
    gradients = torch.autograd.grad(ours.square().sum(), (x, weight, bias))
    eager = torch.nn.functional.silu(torch.nn.functional.group_norm(x, 4, weight, bias))
    expected = torch.autograd.grad(eager.square().sum(), (x, weight, bias))
    for got, want in zip((ours, *gradients), (eager, *expected), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)
print(fastdl.__file__)
"""

LIGHT = """
import json, sys
import torch
before = set(sys.modules)
import fastdl
print(json.dumps(sorted(set(sys.modules) - before)))
"""


def contents(wheel: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def text(wheel: Path, name: str) -> str:
    (found,) = [content for path, content in contents(wheel).items() if path.endswith(f".dist-info/{name}")]
    return found.decode()


def test_the_wheel_is_pure_and_serves_every_python(wheel: Path) -> None:
    assert wheel.name == f"fastdl-{fastdl.__version__}-py3-none-any.whl"
    assert "Root-Is-Purelib: true" in text(wheel, "WHEEL")
    assert not [name for name in contents(wheel) if name.endswith((".so", ".dylib", ".pyc"))]


def test_the_wheel_carries_every_source(wheel: Path) -> None:
    carried = contents(wheel)
    missing = [
        f"{folder}/{path.relative_to(ROOT / folder)}"
        for folder, package in (("fastdl", "fastdl"), ("kernels", "fastdl/kernels"), ("bench", "fastdl/bench"))
        for path in (ROOT / folder).rglob("*.py")
        if carried.get(f"{package}/{path.relative_to(ROOT / folder).as_posix()}") != path.read_bytes()
    ]
    missing += [
        f"csrc/{path.relative_to(ROOT / 'csrc')}"
        for path in (ROOT / "csrc").rglob("*")
        if path.is_file() and f"fastdl/_csrc/{path.relative_to(ROOT / 'csrc').as_posix()}" not in carried
    ]
    assert not missing
    assert "fastdl/py.typed" in carried
    # Nothing but the package: no second top-level name, no tests.
    assert {name.partition("/")[0] for name in carried} == {"fastdl", f"fastdl-{fastdl.__version__}.dist-info"}


def test_the_metadata_says_what_is_needed(wheel: Path) -> None:
    metadata = Parser().parsestr(text(wheel, "METADATA"))
    assert metadata["Version"] == fastdl.__version__
    assert metadata["Requires-Python"] == ">=3.10"
    assert metadata["License-Expression"] == "MIT"
    requirements = metadata.get_all("Requires-Dist") or []
    core = [line for line in requirements if "extra ==" not in line]
    assert sorted(line.partition(";")[0].partition(">")[0].strip() for line in core) == [
        *("ninja", "numpy", "nvidia-ml-py", "torch", "triton")
    ]
    assert any(line.startswith("torch>=2.11") for line in core)
    assert set(metadata.get_all("Provides-Extra") or []) == {
        "all",
        "dev",
        "experiments",
        "notebooks",
        "test",
        "tracking",
        "train",
    }
    assert "fastdl = fastdl.cli:main" in text(wheel, "entry_points.txt")
    assert "MIT License" in text(wheel, "licenses/LICENSE")


def test_it_runs_outside_the_source_tree(installed: Path, tmp_path: Path) -> None:
    where = Path(run(installed, "-c", FORWARD_AND_BACKWARD, cwd=tmp_path).strip())
    assert where.is_relative_to(installed.parents[1])
    script = installed.parent / "fastdl"
    assert run(script, "--version", cwd=tmp_path).strip() == f"fastdl {fastdl.__version__}"
    report = json.loads(run(script, "doctor", "--json", cwd=tmp_path))
    assert Path(report["platform"]["package"]).is_relative_to(installed.parents[1])
    assert report["backends"]["reference"]["available"]
    assert report["backends"]["cpu"]["available"] == fastdl.backends()["cpu"].available


def test_kernels_are_inspected_from_the_installed_sources(installed: Path, tmp_path: Path) -> None:
    script, cache = installed.parent / "fastdl", {"FASTDL_CACHE": str(tmp_path / "cache")}
    listing = run(script, "inspect", "--list", cwd=tmp_path, **cache)
    assert re.search(r"^  norm_merge\.cu +\d+ kernel templates$", listing, re.MULTILINE)
    if cuda_code.missing():
        pytest.skip(cuda_code.missing())
    found = json.loads(run(script, "inspect", "norm_merge::copy_statistics", "--json", cwd=tmp_path, **cache))
    (kernel,) = found["kernels"]
    assert kernel["full_name"] == "fastdl::cuda::norm_merge::copy_statistics"
    assert kernel["registers_per_thread"] > 0


def test_importing_it_imports_torch_and_itself_alone(installed: Path, tmp_path: Path) -> None:
    new = json.loads(run(installed, "-c", LIGHT, cwd=tmp_path))
    allowed = {"fastdl", "torch", *sys.stdlib_module_names}
    foreign = sorted({name.partition(".")[0] for name in new} - allowed)
    assert not foreign, f"import fastdl also imports {', '.join(foreign)}"
    # The compiler's front end takes longer to import than torch itself; who uses torch.compile imports it.
    assert "torch._dynamo" not in new
    assert "fastdl.ops.group_norm" in new


def test_the_source_distribution_builds_the_same_wheel(build: Build, tree: Path, wheel: Path, tmp_path: Path) -> None:
    archive = build(tree, "build_sdist")
    with tarfile.open(archive) as opened:
        opened.extractall(tmp_path / "unpacked", **({"filter": "data"} if hasattr(tarfile, "data_filter") else {}))
    (unpacked,) = (tmp_path / "unpacked").iterdir()
    assert (unpacked / "constraints.txt").is_file()
    again = contents(build(unpacked))
    record = {name for name in again if name.endswith("RECORD")}
    assert {name: again[name] for name in set(again) - record} == {
        name: content for name, content in contents(wheel).items() if name not in record
    }


@pytest.fixture
def small_tree(tree: Path) -> Path:
    """The repository with two small files for its C++ sources."""
    shutil.rmtree(tree / "csrc")
    write_sources(tree / "csrc")
    return tree


@pytest.mark.parametrize("environment", [{}, {"FASTDL_BUILD": "1"}], ids=["torch is there", "asked for"])
def test_a_library_built_ahead_of_time_travels_in_a_wheel_for_the_platform(
    build: Build, small_tree: Path, compiler: str, environment: dict[str, str]
) -> None:
    wheel = build(small_tree, with_torch=True, **environment)
    system = "linux" if platform.system() == "Linux" else "macosx"
    assert wheel.name.startswith(f"fastdl-{fastdl.__version__}-py3-none-{system}")
    assert "Root-Is-Purelib: false" in text(wheel, "WHEEL")
    carried = contents(wheel)
    libraries = [name for name in carried if name.startswith("fastdl/native/prebuilt/")]
    assert len(libraries) == 2
    manifest = json.loads(carried["fastdl/native/prebuilt/manifest.json"])
    assert len(carried[f"fastdl/native/prebuilt/{manifest['library']}"]) == manifest["size"]
    # build/ keeps the library; a later wheel that should have none has none.
    pure = build(small_tree, with_torch=True, FASTDL_BUILD="0")
    assert pure.name.endswith("-py3-none-any.whl")
    assert not [name for name in contents(pure) if "prebuilt" in name]


def test_a_compiler_that_fails_matters_only_to_who_asked_for_it(
    build: Build, small_tree: Path, compiler: str, tmp_path: Path
) -> None:
    broken = failing_compiler(tmp_path / "broken", compiler, "error: on purpose")
    wheel = build(small_tree, with_torch=True, CXX=str(broken))
    assert wheel.name.endswith("-py3-none-any.whl")
    assert not [name for name in contents(wheel) if "prebuilt" in name]
    with pytest.raises(RuntimeError, match=r"FASTDL_BUILD asks for the native library(.|\n)*error: on purpose"):
        build(small_tree, with_torch=True, CXX=str(broken), FASTDL_BUILD="1")


def test_nothing_but_setuptools_is_needed(build: Build, small_tree: Path, tmp_path: Path) -> None:
    nothing = tmp_path / "nothing"
    nothing.mkdir()
    alarm = executable(tmp_path / "alarm", "echo 'the compiler was called' >&2; exit 1")
    wheel = build(small_tree, CXX=str(alarm), PATH=str(nothing))
    assert wheel.name.endswith("-py3-none-any.whl")
