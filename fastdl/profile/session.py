"""`profile`: watch a block of code, and tell what the ops in it took."""

from __future__ import annotations

import gzip
import json
import os
import shutil
import tempfile
import threading
import time
import warnings
import weakref
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch.profiler import ProfilerActivity

from fastdl.profile.annotations import ANNOTATOR, check_nvtx
from fastdl.profile.events import account
from fastdl.profile.limits import Limits, measure_limits
from fastdl.profile.records import Accounts, Record, Row, add_up
from fastdl.profile.report import as_json, report
from fastdl.profile.sensors import Readings, Sensors

_ONE_AT_A_TIME = threading.Lock()

# In this thread.
_profiler_is_on: Callable[[], bool] = torch._C._autograd._profiler_enabled


class Profile:
    """What was seen between entering and leaving a `profile` block.

    Attributes:
        records: one for each call of an op, forward and backward.
        accounts: the records, and where the rest of the time went.
        steps: how often `step` was called, at least 1: what the table divides by.
        readings: of the GPU's sensors; None on a CPU.
    """

    def __init__(self, device: str, *, memory: bool, nvtx: bool) -> None:
        self.device = device
        self.memory = memory
        self.nvtx = nvtx
        self.accounts = Accounts(device=device)
        self.readings: Readings | None = None
        self._steps = 0
        self._limits: Limits | None = None
        activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (device == "cuda")
        self._profiler = torch.profiler.profile(activities=activities, record_shapes=True, profile_memory=memory)
        self._sensors = Sensors(torch.cuda.current_device()) if device == "cuda" else None
        self._began = 0.0
        self._finished = False
        self._trace: Path | None = None

    # -- the block ----------------------------------------------------------------------------------------------------

    def __enter__(self) -> Profile:
        if self._finished:
            raise RuntimeError("profile: this profile has been taken; make a new one")
        if not _ONE_AT_A_TIME.acquire(blocking=False):
            raise RuntimeError("profile: another profile is being taken in this process; end it first")
        try:
            if _profiler_is_on():
                raise RuntimeError(
                    "profile: torch's profiler is on already and would end; use fastdl.profile.annotated() in its block"
                )
            self._synchronize()
            self._profiler.start()
        except BaseException:
            _ONE_AT_A_TIME.release()
            raise
        ANNOTATOR.calls, ANNOTATOR.memory = {}, self.memory
        ANNOTATOR.start(nvtx=self.nvtx)
        if self._sensors is not None:
            self._sensors.start()
        self._began = time.perf_counter()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        calls = ANNOTATOR.calls or {}
        try:
            self._synchronize()
            wall = time.perf_counter() - self._began
            if self._sensors is not None:
                self.readings = self._sensors.stop()
        finally:
            ANNOTATOR.stop(nvtx=self.nvtx)
            ANNOTATOR.calls, ANNOTATOR.memory = None, False
            self._finished = True
            ended = not _profiler_is_on()
            try:
                self._profiler.stop()
            finally:
                _ONE_AT_A_TIME.release()
        if ended:
            warnings.warn(
                "profile: another profiler was used in the block, which has ended this one: nothing was seen",
                RuntimeWarning,
                stacklevel=2,
            )
        events = self._profiler.events() or []
        self.accounts = account(events, calls, wall_seconds=wall, device=self.device, memory=self.memory)

    def _synchronize(self) -> None:
        if self.device == "cuda":
            torch.cuda.synchronize()

    def step(self) -> None:
        """Counts a step, such as one of training: the table then tells time, calls and bytes of one step."""
        self._steps += 1

    # -- what was seen ------------------------------------------------------------------------------------------------

    @property
    def records(self) -> tuple[Record, ...]:
        return self.accounts.records

    @property
    def steps(self) -> int:
        return max(self._steps, 1)

    @property
    def limits(self) -> Limits:
        """The machine's, measured at the first time of asking: half a second for the copy, and for each dtype."""
        if self._limits is None:
            self._limits = measure_limits(torch.device(self.device), (record.call for record in self.records))
        return self._limits

    def rows(self, *, by_shape: bool = False) -> list[Row]:
        """The records added up by op, direction and backend, and with ``by_shape`` by the tensors' shapes as well."""
        return add_up(self.records, self.limits if self.records else None, by_shape=by_shape)

    def table(self, *, by_shape: bool = False, most_others: int = 10) -> str:
        """The rows and where the rest of the time went, at most 120 columns wide.

        Args:
            by_shape: one row for each combination of shapes.
            most_others: how many of torch's operators are named, those that took longest; the others are added up.

        Raises:
            ValueError: ``most_others`` is below 0.
        """
        if most_others < 0:
            raise ValueError(f"most_others must be at least 0; got {most_others}")
        limits = self.limits if self.records else None
        return report(
            self.accounts, self.rows(by_shape=by_shape), limits, self.readings, self.steps, most_others=most_others
        )  # fmt: skip

    def to_dict(self) -> dict[str, Any]:
        """Everything the table tells, and every record, in what JSON can hold; times in seconds, sizes in bytes."""
        limits = self.limits if self.records else None
        return as_json(self.accounts, self.rows(by_shape=True), limits, self.readings, self.steps)

    def export_json(self, path: str | os.PathLike[str]) -> None:
        """Writes `to_dict` to a file. Raises OSError where it cannot be written."""
        text = json.dumps(self.to_dict(), indent=1) + "\n"
        _write(Path(path), lambda beside: beside.write_text(text, encoding="utf-8"))

    def export_chrome_trace(self, path: str | os.PathLike[str]) -> None:
        """Writes the trace for chrome://tracing or https://ui.perfetto.dev; compressed where the name ends in ``.gz``.

        Every range of ours carries the call's shapes, dtypes, backend, and the least that it must move and compute.
        Raises OSError where it cannot be written, and RuntimeError where the block has not been left.
        """
        if not self._finished:
            raise RuntimeError("profile: there is no trace before the block is left")
        if self._trace is None:  # which the profiler gives out once
            handle, name = tempfile.mkstemp(suffix=".json", prefix="fastdl-trace-")
            os.close(handle)
            weakref.finalize(self, os.unlink, name)
            self._profiler.export_chrome_trace(name)
            self._trace = Path(name)
        trace = self._trace
        _write(Path(path), lambda beside: _copy(trace, beside))


def _copy(trace: Path, to: Path) -> None:
    with trace.open("rb") as source, gzip.open(to, "wb") if to.suffix == ".gz" else to.open("wb") as target:
        shutil.copyfileobj(source, target)


def _write(path: Path, write: Callable[[Path], object]) -> None:
    """Beside its place, and renamed into it."""
    if path.is_dir() or not path.parent.is_dir():
        raise OSError(f"{path}: there is no folder for such a file")
    beside = path.with_name(f".{os.getpid()}.{path.name}")
    try:
        write(beside)
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


def profile(*, device: str | None = None, memory: bool = False, nvtx: bool = False) -> Profile:
    """A context manager that watches a block, and then tells what the ops in it took.

        with fastdl.profile.profile() as taken:
            for batch in batches:
                train(batch)
                taken.step()
        print(taken.table())

    It runs ``torch.profiler`` around the block, in the thread that enters it and in autograd's threads; ops in other
    threads are left alone. One profile can be taken at a time in a process. Warm up before it: the first call of an op
    loads or builds its kernels.

    Args:
        device: whose time is told, ``cpu`` or ``cuda``; a GPU's where torch sees one.
        memory: watch what is allocated as well; that slows the block down.
        nvtx: name the ops' ranges for Nsight Systems too; needs a GPU.

    Raises:
        ValueError: a device that is not there, or ``nvtx`` without a GPU.
        RuntimeError: on entering, where another profile is being taken, or torch's profiler is on.
    """
    available = torch.cuda.is_available()
    if device not in (None, "cpu", "cuda"):
        raise ValueError(f"device must be 'cpu', 'cuda' or None; got {device!r}")
    if device == "cuda" and not available:
        raise ValueError("device must be 'cpu' where torch sees no CUDA GPU; got 'cuda'")
    check_nvtx(nvtx)
    return Profile(device or ("cuda" if available else "cpu"), memory=memory, nvtx=nvtx)
