"""The package is imported where nothing can compile, and says what is missing; ``import fastdl`` leaves it alone."""

import os
import subprocess
import sys
from pathlib import Path

CHECKOUT = Path(__file__).parents[2]
# A machine without Triton, nvcc and the programs that read machine code.
WITHOUT = """
import importlib.abc, importlib, pkgutil, sys

class NoTriton(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name.partition(".")[0] == "triton":
            raise ModuleNotFoundError("No module named 'triton'", name=name)

sys.meta_path.insert(0, NoTriton())
import fastdl
assert "fastdl.inspection" not in sys.modules
import fastdl.inspection as package
for module in pkgutil.iter_modules(package.__path__):
    importlib.import_module(f"fastdl.inspection.{module.name}")
assert not any(name.partition(".")[0] == "triton" for name in sys.modules)
from fastdl import cli
from fastdl.native import cuda_toolkit
cuda_toolkit.SYSTEM_NVCC = cuda_toolkit.Path("/nowhere/nvcc")
cuda_toolkit._in_wheels = lambda: []
sys.exit(cli.main(sys.argv[1:]))
"""


def run(tmp_path: Path, *words: str) -> "subprocess.CompletedProcess[str]":
    """The command in a process that has a C++ compiler and none of the others; with a cache of its own."""
    empty = tmp_path / "bin"
    empty.mkdir(exist_ok=True)
    environment = {name: value for name, value in os.environ.items() if name not in ("CUDACXX", "NVCC", "CUDA_HOME")}
    environment.update(
        PATH=str(empty), PYTHONPATH=str(CHECKOUT), FASTDL_CACHE=str(tmp_path / "cache"), CXX=sys.executable
    )
    return subprocess.run(
        [sys.executable, "-c", WITHOUT, *words], env=environment, capture_output=True, text=True, check=False
    )


def test_what_is_missing_is_said_with_what_brings_it(tmp_path: Path) -> None:
    done = run(tmp_path, "inspect", "group_norm")
    assert done.returncode == 2, done.stderr
    assert done.stdout == ""
    triton, cuda = done.stderr.splitlines()
    assert triton.startswith("fastdl inspect: the Triton kernels cannot be compiled here. Triton cannot be imported")
    assert "pip install triton" in triton
    assert cuda.startswith("fastdl inspect: the CUDA C++ kernels cannot be compiled here. ")
    assert "nvcc" in cuda
    assert "pip install nvidia-cuda-nvcc" in cuda


def test_what_there_is_can_be_listed_without_any_compiler(tmp_path: Path) -> None:
    done = run(tmp_path, "inspect", "--list")
    assert done.returncode == 0, done.stderr
    assert "  strips_forward.cu" in done.stdout
    assert "Triton cannot be imported" in done.stderr
