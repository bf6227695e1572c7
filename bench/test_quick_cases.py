"""The quick cases under pytest-benchmark: ``pytest bench/ --benchmark-only``.

For following one contender over time with pytest-benchmark's own statistics and ``--benchmark-compare``. Comparisons
between contenders are `python -m bench`'s, which lets them take turns; here each is timed on its own.
"""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch

from fastdl.bench import registry
from fastdl.bench.cases import Case
from fastdl.bench.harness import compiled, forward_backward_call, forward_call
from fastdl.bench.operands import count_sets, make_operands
from fastdl.bench.summary import FORWARD, PASSES

BENCHMARKS = {name: registry.load(name) for name in registry.names()}
CASES = [(name, case) for name, benchmark in BENCHMARKS.items() for case in benchmark.cases if case.quick]


@pytest.mark.parametrize("contender", ["ours", "eager", "compile"])
@pytest.mark.parametrize("pass_name", PASSES)
@pytest.mark.parametrize(("op", "case"), CASES, ids=[f"{name}-{case.key}".replace(" ", "-") for name, case in CASES])
def test_quick(benchmark: Any, op: str, case: Case, pass_name: str, contender: str) -> None:
    chosen, device = BENCHMARKS[op], torch.device("cpu")
    operands = make_operands(chosen, case, device, count_sets(case.tensor_bytes, device, torch.get_num_threads()))
    function = chosen.ours(case) if contender == "ours" else chosen.eager(case)
    if contender == "compile":
        function = compiled(function)
    call = (forward_call if pass_name == FORWARD else forward_backward_call)(function, operands)
    benchmark.group = f"{op} {case.key} {pass_name}"
    indices = itertools.count()
    with torch.set_grad_enabled(pass_name != FORWARD):
        call(next(indices))
        result = benchmark(lambda: call(next(indices)))
    first = result if isinstance(result, torch.Tensor) else result[0]
    assert first.shape == case.size
    assert first.isfinite().all()
