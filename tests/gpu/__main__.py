"""The command behind ``make gpu-test``: parity of ``triton`` and ``cuda`` on a GPU, then compute-sanitizer.

From a plain copy of the tree, with torch and pytest and nothing else; no network. It ends by itself within eight
minutes. ``summary.json`` in the output folder is written anew as each part ends; beside it each part's log, its record
(a line a test, written as the test ends) and its JUnit file.

Exit status: 0 passed; 1 something failed; 2 a wrong option; 3 there is no GPU; 4 pytest is missing; 5 nothing failed,
but the time was over before everything had run.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import re
import shutil
import sys
from pathlib import Path
from typing import Any

from tests.gpu.jobs import Job, Result, Runner

ROOT = Path(__file__).resolve().parents[2]
NO_GPU, NO_PYTEST, UNFINISHED = 3, 4, 5
TIME_LIMIT = 440.0
# Of the tools each finds what the others do not: addresses, missing barriers, divergent barriers.
SANITIZER_TOOLS = ("memcheck", "racecheck", "synccheck")
SANITIZER_SECONDS = 110.0
SANITIZER_ERROR = 97
BACKENDS = ("triton", "cuda")
# Files with many rows go to several processes.
SHARES = {"test_attention": 4, "test_group_norm": 4, "test_batch_norm": 4, "test_conv_norm_act": 2, "test_nonfinite": 2}


def main(argv: list[str] | None = None) -> int:
    """Runs the command; see above for what it returns."""
    options = make_parser().parse_args(argv)
    complaint = what_is_missing(needs_pytest=not options.only_check)
    if complaint:
        status, text = complaint
        print(text, file=sys.stderr)
        return status
    if options.only_check:
        return 0
    jobs = chosen(all_jobs(), options.only)
    runner = Runner(
        options.output_dir,
        workers=options.workers,
        seconds=options.time_limit,
        facts=machine_facts(),
        say=lambda text: print(text, flush=True),
    )
    print(f"{len(jobs)} parts, {options.workers} at a time; results in {options.output_dir}", flush=True)
    return verdict(runner.run(jobs))


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.gpu", description="Checks the GPU kernels on a GPU.")
    parser.add_argument("--only-check", action="store_true", help="only tell by the status whether there is a GPU")
    parser.add_argument("--output-dir", type=Path, default=ROOT / "gpu-results", help="where the results go")
    parser.add_argument("--only", nargs="+", metavar="PART", default=[], help="parts whose names contain one of these")
    parser.add_argument(
        "--time-limit", type=float, default=TIME_LIMIT, metavar="SECONDS", help="for all parts together"
    )
    parser.add_argument("--workers", type=int, default=default_workers(), help="parts that run beside each other")
    return parser


def default_workers() -> int:
    """Processes: half the processors, since each has a compiler of Triton's beside it now and then, and at most 8."""
    return max(1, min(8, (os.cpu_count() or 2) // 2))


def what_is_missing(needs_pytest: bool) -> tuple[int, str] | None:
    """The exit status and the reason, where nothing can be done here."""
    if importlib.util.find_spec("torch") is None:
        return (
            NO_GPU,
            f"No GPU: {sys.executable} has no torch to see one with. Name another one: make gpu-test PYTHON=...",
        )
    import torch

    if not torch.cuda.is_available():
        return NO_GPU, (
            f"No GPU: torch {torch.__version__} of {sys.executable} sees no CUDA device. Run this on a machine that "
            f"has one, or make test and make bench on the CPU. (Exit status {NO_GPU}; make itself returns 2.)"
        )
    if needs_pytest and importlib.util.find_spec("pytest") is None:
        return NO_PYTEST, f"pytest is missing: {sys.executable} -m pip install pytest"
    return None


def all_jobs() -> list[Job]:
    """The parts in their order: build, parity and the rest of the tests that know backends, then the sanitizers."""
    build = Job("build", (sys.executable, "-m", "tests.gpu.backends", "--record", "{record}"))
    jobs = [build, pytest_job("gpu", ["tests/gpu"], marks="gpu")]
    files = sorted([*(ROOT / "tests" / "ops").glob("test_*.py"), *(ROOT / "tests" / "nn").glob("test_*.py")])
    # The longest first, so that the last to end is a short one.
    for path in sorted(files, key=lambda path: -SHARES.get(path.stem, 1)):
        if needs_hypothesis(path) and importlib.util.find_spec("hypothesis") is None:
            print(f"hypothesis is not here: {path.name} is left out.", file=sys.stderr)
            continue
        shares = SHARES.get(path.stem, 1)
        for number in range(1, shares + 1):
            name = f"{path.parent.name}-{path.stem.removeprefix('test_')}" + (f"-{number}" if shares > 1 else "")
            where = [str(path.relative_to(ROOT))]
            jobs.append(pytest_job(name, where, keywords=" or ".join(BACKENDS), share=f"{number}/{shares}"))
    return [*jobs, *sanitizer_jobs()]


def needs_hypothesis(path: Path) -> bool:
    """Whether a file of tests cannot even be collected without it."""
    return re.search(r"^(?:import|from) hypothesis", path.read_text(encoding="utf-8"), re.MULTILINE) is not None


def pytest_job(name: str, where: list[str], *, keywords: str = "", marks: str = "", share: str = "1/1") -> Job:
    """A part of the tests in a process of its own; no test (status 5) is no failure."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "tests.gpu.plugin"]
    command += ["--record", "{record}", "--deadline", "{deadline}", "--junitxml", "{junit}", "--share", share]
    # Slow is what takes more than ten seconds on two CPU cores.
    command += ["-m", marks or "not slow", *(["-k", keywords] if keywords else []), *where]
    return Job(
        name,
        tuple(command),
        after=("build",),
        statuses=((5, "no test of this file knows the GPU's backends"),),
        environment=(("PYTEST_XDIST_WORKER_COUNT", str(default_workers())),),
    )


def sanitizer_jobs() -> list[Job]:
    """A reduced set of calls under each tool and on each backend, where compute-sanitizer is."""
    sanitizer = shutil.which("compute-sanitizer") or "/usr/local/cuda/bin/compute-sanitizer"
    if not Path(sanitizer).is_file():
        print("compute-sanitizer is not here: its parts are left out.", file=sys.stderr)
        return []
    jobs = []
    from tests.gpu.sanitized import NOT_AVAILABLE

    for backend in BACKENDS:
        calls = (sys.executable, "-m", "tests.gpu.sanitized", "--backend", backend, "--record", "{record}")
        statuses = ((NOT_AVAILABLE, f"backend {backend} is not available"),)
        # Without a tool first: what is compiled then need not be compiled under one.
        plain = f"sanitized-{backend}"
        jobs.append(Job(plain, (*calls, "--deadline", "{deadline}"), after=("build",), statuses=statuses))
        for tool in SANITIZER_TOOLS:
            command = (sanitizer, "--tool", tool, "--error-exitcode", str(SANITIZER_ERROR), *calls)
            environment = (("PYTORCH_NO_CUDA_MEMORY_CACHING", "1"),) if tool == "memcheck" else ()
            jobs.append(
                Job(
                    f"{tool}-{backend}",
                    (*command, "--deadline", "{deadline}"),
                    seconds=SANITIZER_SECONDS,
                    after=("build", plain),
                    statuses=statuses,
                    environment=environment,
                )
            )
    return jobs


def chosen(jobs: list[Job], only: list[str]) -> list[Job]:
    """The jobs whose names contain one of the words, all if there is none, and what they wait for."""
    if not only:
        return jobs
    wanted = {job.name for job in jobs if any(word in job.name for word in only)}
    wanted |= {name for job in jobs if job.name in wanted for name in job.after}
    return [job for job in jobs if job.name in wanted]


def machine_facts() -> dict[str, Any]:
    """The GPU and the software, as the benchmarks record them."""
    import torch

    from fastdl.bench import machine

    described = machine.describe(torch.device("cuda"))
    return {"machine": described, "versions": machine.versions(), "commit": machine.commit()}


def verdict(results: list[Result]) -> int:
    """Prints what it comes to, and returns the exit status."""
    states = [result.state for result in results]
    tests: dict[str, int] = {}
    for result in results:
        for outcome, number in result.outcomes.items():
            tests[outcome] = tests.get(outcome, 0) + number
    print(f"{states.count('passed')} parts passed, {states.count('failed')} failed, "
          f"{states.count('unfinished')} unfinished, {states.count('skipped')} skipped; tests: "
          + (", ".join(f"{number} {outcome}" for outcome, number in sorted(tests.items())) or "none"))  # fmt: skip
    if "failed" in states:
        return 1
    return UNFINISHED if "unfinished" in states else 0


if __name__ == "__main__":
    sys.exit(main())
