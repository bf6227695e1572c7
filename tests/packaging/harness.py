"""Copies of the tree, distributions made from them, and environments that hold only what a test puts there."""

import os
import shutil
import subprocess
import venv
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[2]
# What a source distribution or a plain copy of the repository consists of, as far as running it goes.
PARTS = (
    "fastdl",
    "kernels",
    "bench",
    "csrc",
    "setup.py",
    "pyproject.toml",
    "MANIFEST.in",
    "LICENSE",
    "constraints.txt",
)
VARIABLES = ("FASTDL_BUILD", "FASTDL_CPU_ARCH", "FASTDL_CUDA_ARCHS", "FASTDL_BACKEND", "PYTHONPATH", "CXX")

# One build hook, in a process that knows whether it should see torch.
BUILD = """
import importlib.util, sys
assert (importlib.util.find_spec("torch") is not None) == (sys.argv[1] == "torch"), "torch should be otherwise"
from setuptools import build_meta
getattr(build_meta, sys.argv[2])(sys.argv[3])
"""


def clean_environment(**changes: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name not in VARIABLES}
    return {**kept, **changes}


def copy_tree(folder: Path) -> Path:
    """The repository without what building and running leave behind, as ``folder``, which is made."""
    folder.mkdir()
    for part in PARTS:
        source = ROOT / part
        if source.is_dir():
            shutil.copytree(source, folder / part, ignore=shutil.ignore_patterns("__pycache__", "*.so", "*.egg-info"))
        else:
            shutil.copy(source, folder / part)
    return folder


def empty_environment(folder: Path) -> Path:
    """A new virtual environment that borrows torch and the rest from this one, but no installation of fastdl.

    Its ``.pth`` file names this environment's packages; that of an editable installation there is not read.
    """
    venv.create(folder, with_pip=False, symlinks=True)
    python = folder / "bin" / "python"
    where = subprocess.run(
        [str(python), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    (Path(where) / "borrowed.pth").write_text(f"{Path(torch.__file__).parents[1]}\n")
    return python


def run(python: Path, *arguments: str, cwd: Path, **environment: str) -> str:
    """What a process in an empty folder prints; its failure is the test's."""
    done = subprocess.run(
        [str(python), *arguments],
        cwd=cwd,
        env=clean_environment(**environment),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
