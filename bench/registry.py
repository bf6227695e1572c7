"""The benchmarks there are: every ``bench_<op>.py`` beside this file, found by its name."""

from __future__ import annotations

import importlib
import pkgutil
from pathlib import Path

from .cases import Benchmark

PREFIX = "bench_"


def names() -> list[str]:
    """The ops that have a benchmark, in alphabetical order."""
    found = pkgutil.iter_modules([str(Path(__file__).resolve().parent)])
    return sorted(module.name.removeprefix(PREFIX) for module in found if module.name.startswith(PREFIX))


def in_order() -> list[str]:
    """The same as they are measured by default: the norms first, which take less time than attention."""
    return sorted(names(), key=lambda name: (not name.endswith("norm"), name))


def expanded(asked: list[str]) -> list[str]:
    """The names that were asked for, each once: ``norms`` stands for every norm, and nothing for everything."""
    if not asked:
        return in_order()
    norms = [name for name in in_order() if name.endswith("norm")]
    return list(dict.fromkeys(name for one in asked for name in (norms if one == "norms" else [one])))


def load(name: str) -> Benchmark:
    """The benchmark of an op; raises ValueError for one that has none."""
    if name not in names():
        raise ValueError(f"there is no benchmark of {name!r}; there are: {', '.join(names())}")
    benchmark = importlib.import_module(f"{__package__}.{PREFIX}{name}").BENCHMARK
    assert isinstance(benchmark, Benchmark)
    return benchmark
