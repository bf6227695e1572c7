"""A wrong scale, a wrong head and a wrong mask of attention in Triton, noticed in seconds; all other rows are slow."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from .test_mutations import copy_tree

pytest.importorskip("triton")

FORWARD, SCORES = "kernels/attention_forward.py", "kernels/attention_scores.py"
HIDDEN = "values = tl.where(there {} 0, values, -INFINITY)"
MISTAKES = {
    "scale": (SCORES, "values = products * scale", "values = products * (scale * 1.001)", "plain"),
    "head": (FORWARD, "key_head = wide_head // GROUP", "key_head = wide_head * 0", "grouped"),
    "mask": (SCORES, HIDDEN.format("!="), HIDDEN.format("=="), "boolean"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_in_attention_is_noticed(mistake: str, tmp_path: Path) -> None:
    file, old, new, case = MISTAKES[mistake]
    tree = copy_tree(tmp_path)
    source = (tree / file).read_text()
    assert source.count(old) == 1
    assert passes(tree, case)
    (tree / file).write_text(source.replace(old, new))
    assert not passes(tree, case)


def passes(tree: Path, case: str) -> bool:
    """Whether a case of attention is right in this tree, on the path of one launch."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST_", "FASTDL_"))}
    environment |= {"PYTHONPATH": str(tree), "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    test = f"tests/interpreter/attention_paths.py::test_every_path_is_right[{case}-one_launch]"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-W", "ignore::RuntimeWarning", test]
    done = subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode in (0, 1), done.stdout + done.stderr
    assert "1 passed" in done.stdout or "1 failed" in done.stdout, done.stdout + done.stderr
    return done.returncode == 0
