"""A plain copy of the tree on PYTHONPATH, with nothing installed, is the whole package."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.packaging.harness import ROOT, clean_environment, empty_environment, run

LOOK = """
import fastdl, fastdl.kernels, fastdl.bench
from fastdl.native.sources import find_csrc
print(fastdl.__file__, fastdl.kernels.__file__, fastdl.bench.__file__, find_csrc(), sep="\\n")
import torch
assert fastdl.ops.group_norm(torch.ones(1, 4, 2, requires_grad=True), 2).sum().backward() is None
"""


def test_kernels_bench_and_sources_are_found(tree: Path, tmp_path: Path) -> None:
    python = empty_environment(tmp_path / "empty")
    found = run(python, "-c", LOOK, cwd=tmp_path, PYTHONPATH=str(tree)).splitlines()
    assert found == [
        str(tree / "fastdl" / "__init__.py"),
        str(tree / "kernels" / "__init__.py"),
        str(tree / "bench" / "__init__.py"),
        str(tree / "csrc"),
    ]


def test_the_finder_steps_aside_for_an_installed_package(installed: Path, tmp_path: Path) -> None:
    names = run(installed, "-c", "import fastdl, sys; print(*(type(f).__name__ for f in sys.meta_path))", cwd=tmp_path)
    assert "SiblingFinder" not in names


def test_gpu_targets_say_plainly_that_there_is_no_gpu() -> None:
    import torch

    make = shutil.which("make")
    if make is None or torch.cuda.is_available():
        pytest.skip("needs make, and no GPU")
    for target in ("gpu-test", "gpu-bench"):
        done = subprocess.run(
            [make, "-C", str(ROOT), target, f"PYTHON={sys.executable}"],
            env=clean_environment(),
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode != 0
        assert "No GPU" in done.stderr
