"""Each listed mistake is put into a copy of the tree, which is built and tested there. The tests must notice it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.mutation.mutations import MUTATIONS, Mutation
from tests.support.backends import BACKENDS_UNDER_TEST

ROOT = Path(__file__).resolve().parents[2]
TREE = ["fastdl", "kernels", "csrc", "tests", "pyproject.toml"]
FILES = ["group_norm", "batch_norm", "activations", "rounding", "running_statistics", "nonfinite"]
TESTED = [f"tests/ops/test_{name}.py" for name in FILES]

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def copy_tree(target: Path) -> Path:
    for name in TREE:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, target / name, ignore=shutil.ignore_patterns("__pycache__", "prebuilt"))
        else:
            shutil.copy(source, target / name)
    return target


def run_tests(tree: Path) -> subprocess.CompletedProcess[str]:
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("PYTEST_", "FASTDL_"))}
    environment |= {"PYTHONPATH": str(tree), "FASTDL_CACHE": str(tree / "cache")}
    probe = "import fastdl, sys; s = fastdl.backends()['cpu']; print(fastdl.__file__); sys.exit(s.reason or 0)"
    built = subprocess.run(
        [sys.executable, "-c", probe], cwd=tree, env=environment, capture_output=True, text=True, check=False
    )
    assert built.returncode == 0, f"the mutated source does not build:\n{built.stderr[-2000:]}"
    assert built.stdout.startswith(str(tree)), built.stdout
    options = ["-k", "cpu and not reference", "-m", "not slow", "-q", "-x", "-p", "no:cacheprovider", "--tb=line"]
    return subprocess.run(
        [sys.executable, "-m", "pytest", *TESTED, *options],
        cwd=tree,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(scope="session")
def control(tmp_path_factory: pytest.TempPathFactory) -> None:
    """The tree as it is passes: else every mistake would be noticed for the wrong reason."""
    BACKENDS_UNDER_TEST["cpu"].device()
    result = run_tests(copy_tree(tmp_path_factory.mktemp("control")))
    assert result.returncode == 0, result.stdout[-2000:]


@pytest.mark.usefixtures("control")
@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.name)
def test_the_mistake_is_noticed(mutation: Mutation, tmp_path: Path) -> None:
    tree = copy_tree(tmp_path)
    file = tree / "csrc" / mutation.file
    source = file.read_text()
    assert source.count(mutation.old) == 1, (
        f"{mutation.old!r} occurs {source.count(mutation.old)} times in {mutation.file}"
    )
    file.write_text(source.replace(mutation.old, mutation.new))
    result = run_tests(tree)
    assert result.returncode == 1, f"no test noticed {mutation.name}:\n{result.stdout[-2000:]}"
    shutil.rmtree(tree, ignore_errors=True)
