"""Compiles and measures what was asked for, item after item, and says how far it is."""

import os
import re
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from threading import Lock

from . import cuda_code, triton_code
from .catalog import CUDA, TRITON, Item, kernel_of_dtype, short_name, wants
from .occupancy import ARCHITECTURES, Occupancy, occupancy
from .resources import Resources


@dataclass(frozen=True)
class Row:
    """One kernel in one configuration on one architecture. ``full_name``: of CUDA C++, with namespaces."""

    architecture: int
    language: str
    subject: str
    name: str
    full_name: str
    resources: Resources

    @property
    def occupancy(self) -> Occupancy:
        """Of blocks as large as the launch bound, without the dynamic shared memory that depends on the shape."""
        launch = self.resources.launch
        shared = launch.static_shared_bytes + (launch.dynamic_shared_bytes or 0)
        return occupancy(ARCHITECTURES[self.architecture], launch.threads, self.resources.registers, shared)

    @property
    def is_bound(self) -> bool:
        """Whether a launch may ask for more shared memory than is known, so that fewer blocks of this size may fit."""
        return self.resources.launch.dynamic_shared_bytes is None


@dataclass(frozen=True)
class Failure:
    architecture: int
    language: str
    name: str
    message: str


class Progress:
    """Tells on standard error which of how many is at work: on one line that changes where a person watches.

    Into a pipe or a file goes a line for each kernel and architecture, not for each of its configurations.
    """

    def __init__(self, total: int) -> None:
        self.total, self.begun = total, 0
        self._lock = Lock()
        self._width = 0
        self._told: set[str] = set()

    def begin(self, subject: str, name: str) -> None:
        with self._lock:
            self.begun += 1
            place = f"[{self.begun}/{self.total}]"
            if sys.stderr.isatty():
                line = f"{place} {name}"[: max(_columns() - 1, 20)]
                print(f"\r{line:{self._width}}", end="", file=sys.stderr, flush=True)
                self._width = len(line)
            elif subject not in self._told:
                self._told.add(subject)
                print(f"{place} {subject}", file=sys.stderr, flush=True)

    def end(self) -> None:
        if self._width:
            print(f"\r{'':{self._width}}\r", end="", file=sys.stderr, flush=True)
            self._width = 0


def measure_all(
    items: Sequence[Item], architectures: Sequence[int], words: Sequence[str], dtypes: Sequence[str]
) -> tuple[list[Row], list[Failure]]:
    """Every kernel that was asked for, in the items' order, and what could not be compiled.

    Sources of CUDA C++ are compiled several at a time, by nvcc; Triton compiles in this process, one after another, and
    after them, since it takes its cache's place from the environment that nvcc is given. An interruption leaves nothing
    behind that is not whole: each result is kept as it is made.
    """
    work = [(item, number) for number in architectures for item in items if number in item.architectures]
    progress = Progress(len(work))

    def measure(item: Item, number: int) -> list[Row] | Failure:
        progress.begin(f"sm_{number} {item.subject}", f"sm_{number} {item.name}")
        try:
            return _measure(item, number, words, dtypes)
        except Exception as error:  # a compiler's own kinds of errors, which are told beside what did compile
            return Failure(number, item.language, item.name, " ".join(str(error).split())[-500:])

    try:
        found = _in_order(work, measure)
    finally:
        progress.end()
    rows = [row for result in found if not isinstance(result, Failure) for row in result]
    return rows, [result for result in found if isinstance(result, Failure)]


def _in_order(
    work: Sequence[tuple[Item, int]], measure: Callable[[Item, int], list[Row] | Failure]
) -> list[list[Row] | Failure]:
    done: dict[tuple[Item, int], list[Row] | Failure] = {}
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        waiting = {pair: pool.submit(measure, *pair) for pair in work if pair[0].language == CUDA}
        try:
            done.update({pair: future.result() for pair, future in waiting.items()})
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    done.update({pair: measure(*pair) for pair in work if pair[0].language == TRITON})
    return [done[pair] for pair in work]


def _measure(item: Item, number: int, words: Sequence[str], dtypes: Sequence[str]) -> list[Row]:
    if item.entry is not None:
        resources = triton_code.measure(item.entry, number)
        return [Row(number, item.language, item.subject, item.name, item.name, resources)]
    assert item.source is not None
    if reason := cuda_code.unknown(number):
        raise ValueError(reason)
    return [
        Row(number, item.language, item.subject, short_name(name), name, resources)
        for name, resources in sorted(
            cuda_code.measure(item.source, number).items(), key=lambda found: _natural(found[0])
        )
        if wants(words, item, short_name(name)) and kernel_of_dtype(dtypes, short_name(name))
    ]


def _natural(name: str) -> list[tuple[int, str]]:
    """Orders names with numbers in them by these: ``kernel<32>`` before ``kernel<128>``."""
    return [(int(part), "") if part.isdigit() else (0, part) for part in re.split(r"(\d+)", name)]


def _columns() -> int:
    try:
        return os.get_terminal_size(sys.stderr.fileno()).columns or 80  # a terminal may not know its width
    except (OSError, ValueError):
        return 80
