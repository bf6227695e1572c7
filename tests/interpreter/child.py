"""A pytest process with ``TRITON_INTERPRET=1``, which Triton reads when a kernel is defined and never again."""

from __future__ import annotations

import os
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Outcome:
    """How many tests passed, which failed or were skipped (with the message), and all that the process printed."""

    passed: int
    failed: tuple[str, ...]
    skipped: tuple[str, ...]
    output: str


def run_interpreted(folder: Path, *arguments: str, timeout: float = 280) -> Outcome:
    """Runs pytest on ``arguments`` from the repository's root; the report is written into ``folder``."""
    report = folder / "report.xml"
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    environment |= {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    # NumPy, by which the interpreter computes, warns of every infinity that a GPU makes in silence.
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "--tb=short",
        "-W",
        "ignore::RuntimeWarning",
        f"--junitxml={report}",
    ]
    process = subprocess.run(
        [*command, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=timeout, check=False
    )
    output = process.stdout + process.stderr
    if not report.is_file():
        raise AssertionError(f"pytest wrote no report; exit status {process.returncode}\n{output[-4000:]}")
    passed, failed, skipped = 0, [], []
    for case in ElementTree.parse(report).iter("testcase"):
        name = f"{case.get('classname')}::{case.get('name')}"
        problem = case.find("failure") if case.find("failure") is not None else case.find("error")
        if problem is not None:
            failed.append(f"{name}: {(problem.get('message') or '')[:500]}")
        elif case.find("skipped") is not None:
            skipped.append(f"{name}: {case.find('skipped').get('message')}")
        else:
            passed += 1
    if process.returncode not in (0, 1):
        failed.append(f"pytest ended with status {process.returncode}: {output[-2000:]}")
    return Outcome(passed, tuple(failed), tuple(skipped), output)
