"""The gate, cut into jobs: one Triton kernel in all its configurations, or one .cu file, for one architecture.

A job is what one test runs and what one process of ``python -m tests.aot`` runs.
"""

from dataclasses import dataclass
from functools import cache

from fastdl.inspection import cuda_code, triton_code
from fastdl.kernels.shipped import ARCHITECTURES, Shipped, all_shipped

from . import table
from .limits import assign, check_cuda, check_triton, read_cuda_limits

TRITON, CUDA = "Triton", "CUDA C++"


@dataclass(frozen=True)
class Job:
    """``subject``: of Triton, ``<module>.<kernel>``; of CUDA C++, the file's name."""

    language: str
    subject: str
    architecture: int

    def __str__(self) -> str:
        return f"{self.subject}-sm_{self.architecture}"


@dataclass(frozen=True)
class Outcome:
    """The table's cells of each configuration, and a sentence for each limit that is not kept."""

    cells: dict[str, dict[str, str]]
    wrong: list[str]


def jobs() -> list[Job]:
    """Every job that there is, whether or not this machine can run it."""
    found = [Job(CUDA, source.name, architecture) for source in cuda_code.sources() for architecture in ARCHITECTURES]
    if triton_code.is_usable():
        found += [
            Job(TRITON, subject, architecture)
            for subject, entries in triton_kernels().items()
            for architecture in ARCHITECTURES
            if any(architecture in entry.architectures for entry in entries)
        ]
    return found


def obstacle(job: Job) -> str:
    """Why this machine cannot run the job; empty where it can."""
    if job.language == CUDA:
        return cuda_code.missing() or cuda_code.unknown(job.architecture)
    return "" if triton_code.is_usable() else "Triton cannot be imported, or runs its interpreter"


def run(job: Job) -> Outcome:
    return _run_triton(job) if job.language == TRITON else _run_cuda(job)


def versions(language: str) -> str:
    return triton_code.versions() if language == TRITON else cuda_code.versions()


def names(job: Job) -> list[str] | None:
    """The configurations that the job measures; None where only compiling tells (a file's kernels)."""
    if job.language == CUDA:
        return None
    return [entry.name for entry in triton_kernels()[job.subject] if job.architecture in entry.architectures]


@cache
def triton_kernels() -> dict[str, list[Shipped]]:
    """All that ships, by kernel."""
    found: dict[str, list[Shipped]] = {}
    for entry in all_shipped():
        function = entry.kernel.fn
        found.setdefault(f"{function.__module__.rpartition('.')[2]}.{function.__name__}", []).append(entry)
    return found


def _run_triton(job: Job) -> Outcome:
    outcome = Outcome({}, [])
    for entry in triton_kernels()[job.subject]:
        if job.architecture not in entry.architectures:
            continue
        resources = triton_code.measure(entry, job.architecture)
        outcome.wrong.extend(check_triton(entry.name, job.architecture, resources, entry.limits))
        outcome.cells[entry.name] = {"warps": str(entry.num_warps), **table.cells(resources, entry.limits)}
    return outcome


def _run_cuda(job: Job) -> Outcome:
    source = cuda_code.folder() / job.subject
    kernels = cuda_code.measure(source, job.architecture)
    path = source.with_suffix(".limits.json")
    # A file of host code alone has no limits beside it.
    limits = read_cuda_limits(path) if kernels or path.exists() else {}
    assigned, wrong = assign(sorted(kernels), limits, job.architecture)
    outcome = Outcome({}, wrong)
    for name, entry in assigned.items():
        outcome.wrong.extend(check_cuda(name, job.architecture, kernels[name], entry))
        outcome.cells[name] = table.cells(kernels[name], entry)
    return outcome
