"""Fixtures: a copy of the tree, a way to build it, the wheel, and an environment with the wheel installed."""

import importlib.metadata
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.packaging.harness import BUILD, clean_environment, copy_tree, empty_environment

Build = Callable[..., Path]


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A copy of the repository, without what building leaves behind."""
    return copy_tree(tmp_path / "tree")


@pytest.fixture(scope="session")
def build(tmp_path_factory: pytest.TempPathFactory) -> Build:
    """Builds a distribution as an installer would, in a process that sees setuptools alone (and torch if asked for)."""
    setuptools = importlib.metadata.distribution("setuptools")
    site = tmp_path_factory.mktemp("setuptools-only")
    for name in ("setuptools", "_distutils_hack"):
        (site / name).symlink_to(Path(str(setuptools.locate_file(name))))
    metadata = next(file for file in setuptools.files or [] if file.name == "METADATA")
    (site / metadata.parent.name).symlink_to(Path(str(setuptools.locate_file(metadata))).parent)

    def build(tree: Path, hook: str = "build_wheel", *, with_torch: bool = False, **environment: str) -> Path:
        output = tree.parent / f"{hook}-{len(list(tree.parent.iterdir()))}"
        output.mkdir()
        paths = [str(site), *([str(Path(torch.__file__).parents[1])] if with_torch else [])]
        done = subprocess.run(
            [sys.executable, "-S", "-c", BUILD, "torch" if with_torch else "no torch", hook, str(output)],
            cwd=tree,
            env=clean_environment(PYTHONPATH=os.pathsep.join(paths), **environment),
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            raise RuntimeError(done.stdout + done.stderr)
        (made,) = output.iterdir()
        return made

    return build


@pytest.fixture(scope="session")
def wheel(build: Build, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel that ``pip install .`` makes: no torch, no compiler asked for."""
    return build(copy_tree(tmp_path_factory.mktemp("wheel") / "tree"))


@pytest.fixture(scope="session")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of an empty environment into which the wheel was installed."""
    python = empty_environment(tmp_path_factory.mktemp("installed"))
    install = [sys.executable, "-m", "pip", "--python", str(python), "install", "--no-deps", "--no-index", "--quiet"]
    subprocess.run([*install, str(wheel)], check=True, env=clean_environment(PIP_DISABLE_PIP_VERSION_CHECK="1"))
    return python
