"""Several runs at the same time, each in a process of its own that lives as long as the sweep.

The data set is handed over in shared memory. A worker that dies is replaced and its run noted as failed; workers whose
sweep has died end within a second, so that the next one finds nobody in its folder.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import torch.multiprocessing

from fastdl.data import ImageDataset, Split
from fastdl.experiments.runner import PlannedRun, Report, RunSettings, attempt
from fastdl.training import TimeLimitReached

__all__ = ["side_by_side"]

MOST_DEATHS = 5


def side_by_side(
    plans: Sequence[PlannedRun],
    waiting: Sequence[int],
    dataset: ImageDataset,
    folder: Path,
    settings: RunSettings,
    labels: Sequence[str],
    jobs: int,
) -> Iterator[tuple[int, Report]]:
    """Make the runs of ``plans`` at ``waiting``, ``jobs`` at a time, and yield what came of each as it ends.

    Raises:
        ValueError: of a run; the others are stopped, to be continued another time.
        RuntimeError: processes end again and again before they have made a run.
    """
    queue = list(waiting)
    deaths = 0
    job = _Job(list(plans), _Portable(dataset), folder, settings, list(labels))
    workers = [_Worker(job) for _ in range(jobs)]
    try:
        while queue or any(worker.index is not None for worker in workers):
            for worker in workers:
                if worker.index is None and queue:
                    worker.give(queue.pop(0))
            ready = wait([worker.connection for worker in workers if worker.index is not None])
            for worker in [worker for worker in workers if worker.connection in ready]:
                index = worker.index
                assert index is not None
                report = worker.take()
                deaths = deaths + 1 if report is None else 0
                if report is None:
                    report = f"its process ended with status {worker.status}"
                    if deaths == MOST_DEATHS:
                        raise RuntimeError(
                            f"{deaths} processes one after the other made no run, the last one: {report}; "
                            "with one job there are no further processes, and the reason is told"
                        )
                    workers[workers.index(worker)] = _Worker(job)
                if isinstance(report, ValueError):
                    raise report
                if isinstance(report, TimeLimitReached):
                    queue.clear()
                yield index, report
    finally:
        for worker in workers:
            worker.stop()


class _Portable:
    """A data set that can be sent to another process; its tensors go to shared memory."""

    def __init__(self, dataset: ImageDataset) -> None:
        self._splits = {name: (split.images, split.labels) for name, split in dataset.splits.items()}
        self._rest = dataset.name, dataset.class_names, dataset.mean, dataset.std

    def dataset(self) -> ImageDataset:
        name, class_names, mean, std = self._rest
        return ImageDataset(
            name, {key: Split(*tensors) for key, tensors in self._splits.items()}, class_names, mean, std
        )


class _Job:
    """What every worker knows."""

    def __init__(
        self,
        plans: list[PlannedRun],
        dataset: _Portable,
        folder: Path,
        settings: RunSettings,
        labels: list[str],
    ) -> None:
        self.plans = plans
        self.dataset = dataset
        self.folder = folder
        self.settings = settings
        self.labels = labels
        self.parent = os.getpid()


class _Worker:
    """A process, and the number of the run that it is at, None if it is idle."""

    def __init__(self, job: _Job) -> None:
        # Not forked: CUDA and the threads of torch do not survive that.
        context: Any = torch.multiprocessing.get_context("spawn")
        self.connection: Connection
        self.connection, other = context.Pipe()
        self.index: int | None = None
        self._process: Any = context.Process(target=_work, args=(job, other), daemon=True)
        self._process.start()
        other.close()

    @property
    def status(self) -> int | None:
        """Exit status; the number of a signal with a minus sign."""
        self._process.join(timeout=10)
        status: int | None = self._process.exitcode
        return status

    def give(self, index: int) -> None:
        self.index = index
        with suppress(OSError):  # it has died, which `take` finds
            self.connection.send(index)

    def take(self) -> Report | ValueError | None:
        """What came of the run; None if the process has ended."""
        self.index = None
        try:
            report: Report | ValueError = self.connection.recv()
        except (EOFError, OSError):
            return None
        return report

    def stop(self) -> None:
        """Ends the process, in the midst of a run if need be, which is continued from its last checkpoint."""
        if self.index is None:
            self.connection.close()
            self._process.join(timeout=5)
        self._process.kill()
        self._process.join()


def _work(job: _Job, connection: Connection) -> None:
    # An interrupt from the keyboard reaches all processes of a terminal: the parent's decision is enough.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with, args=(job.parent,), daemon=True).start()
    dataset = job.dataset.dataset()
    while True:
        try:
            index = connection.recv()
        except (EOFError, OSError):
            return
        try:
            report: Report | ValueError = attempt(
                job.plans[index], dataset, job.folder, job.settings, job.labels[index]
            )
        except ValueError as error:
            report = ValueError(str(error))
        connection.send(report)


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(0.2)
    os._exit(1)
