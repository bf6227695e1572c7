"""Each listed mistake is put into a copy of the tree, which is built and tested there. The tests must notice it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

from tests.mutation.mutation import Mutation
from tests.mutation.mutations import MUTATIONS
from tests.support.backends import BACKENDS_UNDER_TEST

ROOT = Path(__file__).resolve().parents[2]
TREE = ["fastdl", "kernels", "bench", "csrc", "tests", "pyproject.toml"]
ON_THE_CPU = ("group_norm", "batch_norm", "activations", "rounding", "running_statistics", "nonfinite")


@dataclass(frozen=True)
class Suite:
    """What must notice a mistake in the files whose paths begin with ``beginning``; stops at the first failure."""

    beginning: str
    arguments: tuple[str, ...]
    needs_cpu_library: bool = False


ON_THE_CPU_OF_ATTENTION = ("attention", "attention_varlen", "attention_dropout", "attention_properties")

# The first that fits.
SUITES = (
    Suite("kernels/attention", ("tests/interpreter/test_interpreter.py", "-k", "attention")),
    Suite("kernels/philox", ("tests/interpreter/test_interpreter.py", "-k", "attention")),
    Suite("csrc/cuda/attention", ("tests/simt/test_attention.py",)),
    Suite("csrc/cuda/dropout", ("tests/simt/test_dropout.py",)),
    Suite("csrc/cuda/philox", ("tests/simt/test_dropout.py",)),
    Suite("csrc/cuda/bindings_dropout", ("tests/native/test_cuda_bindings.py",)),
    *(
        Suite(
            beginning,
            (*(f"tests/ops/test_{name}.py" for name in ON_THE_CPU_OF_ATTENTION), "-k", "cpu and not reference"),
            needs_cpu_library=True,
        )
        for beginning in ("csrc/cpu/attention", "csrc/cpu/matrix", "csrc/attention")
    ),
    *(
        Suite(beginning, ("tests/ops/test_cpu_convolution.py",), needs_cpu_library=True)
        for beginning in ("csrc/cpu/convolution", "csrc/bindings_convolution")
    ),
    *(
        Suite(beginning, ("tests/ops/test_dropout.py", "-k", "not reference"), needs_cpu_library=True)
        for beginning in (
            "csrc/cpu/dropout",
            "csrc/cpu/philox",
            "csrc/dropout_tensors",
            "csrc/bindings_dropout",
            "fastdl/ops/dropout",
        )
    ),
    Suite("fastdl/ops/conv_norm_block", ("tests/ops/test_conv_norm_block.py",), needs_cpu_library=True),
    Suite("kernels/dropout", ("tests/interpreter/test_interpreter.py", "-k", "path_of_dropout")),
    Suite("kernels/row_norm", ("tests/interpreter/test_interpreter.py", "-k", "norms_over_rows")),
    Suite("csrc/cuda/row_norm", ("tests/simt/test_row_norms.py",)),
    Suite("csrc/cuda/bindings_row_norms", ("tests/native/test_cuda_bindings.py",)),
    Suite(
        "csrc/cpu/row_norm",
        ("tests/ops/test_row_norms.py", "tests/ops/test_row_norms_streamed.py", "-k", "cpu and not reference"),
        needs_cpu_library=True,
    ),
    Suite("kernels/convolution", ("tests/interpreter/test_interpreter.py", "-k", "every_path_of_convolutions")),
    Suite("kernels/norm_act_conv", ("tests/interpreter/test_interpreter.py", "-k", "every_path_of_convolutions")),
    Suite("csrc/cuda/convolution", ("tests/simt/test_convolution.py",)),
    Suite("csrc/cuda/norm_act_conv", ("tests/simt/test_convolution.py",)),
    *(
        Suite(f"fastdl/nn/{name}", (f"tests/nn/test_{name}.py",))
        for name in ("sync_batch_norm", "conv_norm_act", "instance_norm")
    ),
    Suite("kernels/", ("tests/interpreter/test_interpreter.py", "-k", "test_every_path and not path_of")),
    Suite("csrc/cuda/", ("tests/simt/test_group_norm.py", "tests/simt/test_batch_norm.py")),
    Suite(
        "csrc/",
        (*(f"tests/ops/test_{name}.py" for name in ON_THE_CPU), "-k", "cpu and not reference"),
        needs_cpu_library=True,
    ),
)


def suite_of(mutation: Mutation) -> Suite:
    return next(suite for suite in SUITES if mutation.file.startswith(suite.beginning))


pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def copy_tree(target: Path) -> Path:
    for name in TREE:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, target / name, ignore=shutil.ignore_patterns("__pycache__", "prebuilt"))
        else:
            shutil.copy(source, target / name)
    return target


def run_tests(tree: Path, suite: Suite) -> subprocess.CompletedProcess[str]:
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("PYTEST_", "FASTDL_"))}
    environment |= {"PYTHONPATH": str(tree), "FASTDL_CACHE": str(tree / "cache")}
    if suite.needs_cpu_library:
        probe = "import fastdl, sys; s = fastdl.backends()['cpu']; sys.exit(s.reason or 0)"
        built = run_python(tree, environment, "-c", probe)
        assert built.returncode == 0, f"the mutated source does not build:\n{built.stderr[-2000:]}"
    places = run_python(
        tree, environment, "-c", "import fastdl.kernels as k, fastdl as f; print(f.__file__, k.__file__)"
    )
    assert all(place.startswith(str(tree)) for place in places.stdout.split()), places.stdout + places.stderr
    options = ["-m", "not slow", "-q", "-x", "-p", "no:cacheprovider", "--tb=line"]
    return run_python(tree, environment, "-m", "pytest", *suite.arguments, *options)


def run_python(tree: Path, environment: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments], cwd=tree, env=environment, capture_output=True, text=True, check=False
    )


@pytest.fixture(scope="session")
def control(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Suite], None]:
    """Asserts that the tree as it is passes a suite: else every mistake would be noticed for the wrong reason."""
    BACKENDS_UNDER_TEST["cpu"].device()

    @cache
    def passes(suite: Suite) -> None:
        result = run_tests(copy_tree(tmp_path_factory.mktemp("control")), suite)
        assert result.returncode == 0, result.stdout[-2000:]

    return passes


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.name)
def test_the_mistake_is_noticed(mutation: Mutation, tmp_path: Path, control: Callable[[Suite], None]) -> None:
    control(suite_of(mutation))
    tree = copy_tree(tmp_path)
    file = tree / mutation.file
    source = file.read_text()
    assert source.count(mutation.old) == 1, (
        f"{mutation.old!r} occurs {source.count(mutation.old)} times in {mutation.file}"
    )
    file.write_text(source.replace(mutation.old, mutation.new))
    result = run_tests(tree, suite_of(mutation))
    assert result.returncode == 1, f"no test noticed {mutation.name}:\n{result.stdout[-2000:]}"
    shutil.rmtree(tree, ignore_errors=True)
