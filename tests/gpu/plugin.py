"""pytest without plugins, on a machine where nothing may be installed: shares of the tests, a deadline, a record.

Loaded by ``-p tests.gpu.plugin``. Each test's outcome is on disk as a line of JSON the moment that it is known, so that
a run that is killed keeps what it has found.
"""

from __future__ import annotations

import re
import time
import zlib
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.gpu import record

# Marks of plugins that may be missing here; `--strict-markers` would take them for misspelt.
MARKS_OF_PLUGINS = {"timeout": "timeout(seconds): pytest-timeout's"}


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("gpu", "one share of the tests, for so long")
    group.addoption("--share", default="1/1", help="the K-th of N shares of the tests, as K/N")
    group.addoption("--deadline", type=float, default=None, help="start no test after this time, in seconds since 1970")
    group.addoption("--record", type=Path, default=None, help="the file that gets a line of JSON for each test")


def pytest_configure(config: pytest.Config) -> None:
    # A convolution in TF32 is off by 1e-3, torch's as ours. What is compared with float64 here is the norm behind it.
    torch.backends.cudnn.allow_tf32 = False
    known = {str(line).partition(":")[0].partition("(")[0].strip() for line in config.getini("markers")}
    for name, line in MARKS_OF_PLUGINS.items():
        if name not in known:
            config.addinivalue_line("markers", line)
    path = config.getoption("--record")
    if path is not None:
        config.pluginmanager.register(Recorder(path))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    number, shares = (int(part) for part in config.getoption("--share").split("/"))
    if not 1 <= number <= shares:
        raise pytest.UsageError(f"--share must be K/N with K from 1 to N; got {number}/{shares}")
    if shares == 1:
        return
    chosen = [item for item in items if share_of(item.nodeid, shares) == number]
    config.hook.pytest_deselected(items=[item for item in items if share_of(item.nodeid, shares) != number])
    items[:] = chosen


def share_of(nodeid: str, shares: int) -> int:
    """Which share a test is in. The backends of a case go together: they are compared with the same truth."""
    return 1 + zlib.crc32(re.sub(r"-(?:reference|cpu|triton|cuda)\]$", "]", nodeid).encode()) % shares


def pytest_runtest_setup(item: pytest.Item) -> None:
    deadline = item.config.getoption("--deadline")
    if deadline is not None and time.time() > deadline:
        item.session.shouldstop = "the time is over"
        pytest.skip("the time is over")


class Recorder:
    """Writes outcomes as they come."""

    def __init__(self, path: Path) -> None:
        self.path = path
        record.begin(path)

    def pytest_collectreport(self, report: Any) -> None:
        if report.failed:
            self.write(report.nodeid, "error", 0.0, str(report.longrepr))

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        self.write("", "collected", float(len(session.items)), "")

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call" or report.outcome != "passed":
            outcome = "error" if report.failed and report.when != "call" else report.outcome
            self.write(report.nodeid, outcome, report.duration, message_of(report))

    def write(self, test: str, outcome: str, seconds: float, message: str) -> None:
        record.write(self.path, test, outcome, seconds, message)


def message_of(report: pytest.TestReport) -> str:
    """Why a test failed or was skipped, in a line or two."""
    if report.skipped and isinstance(report.longrepr, tuple):
        return str(report.longrepr[2])
    crash = getattr(report.longrepr, "reprcrash", None)
    return str(crash.message) if crash is not None else str(report.longrepr or "")
