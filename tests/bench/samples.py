"""A run and its records with times that a test chooses."""

from dataclasses import replace

from fastdl.bench import results
from fastdl.bench.cases import Case
from fastdl.bench.records import CaseRecord, Measurement
from fastdl.bench.timing import Spread

MACHINE = {"device": "cpu", "name": "A Processor", "cores": 2}


def make_run(operator="group_norm", **changes):
    run = results.Run(
        operator=operator,
        title="GroupNorm + SiLU",
        date="2026-01-01T00:00:00+00:00",
        commit="0123456789abcdef",
        versions={"torch": "2.13.0", "python": "3.11.7"},
        threads=2,
        selection={"shapes": "full", "layout": "both", "dtype": "all", "pool": "both"},
        memory_copy_bandwidth=4e10,
        matrix_rates={"float32": 1e11},
    )
    return replace(run, **changes)


def make_record(size=(2, 64, 8, 8), ours=1.0, eager=2.0):
    case = Case(size, "nchw", "float32", "silu", "a network", 32, True)
    times = {name: Spread(t, 0.9 * t, 1.1 * t, 7, 3) for name, t in (("ours", ours), ("eager", eager))}
    measurements = tuple(Measurement(p, "on", times, 100, 200.0, 0.5) for p in ("forward", "forward+backward"))
    return CaseRecord(case, "cpu", 4, {"ours": 50, "eager": 100}, {"compile": "no compiler"}, measurements)
