"""Runs rows of the row norms' parity table on the host SIMT harness, and holds the results to the rule of the table."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from fastdl.reference.layer_norm import layer_norm_with_statistics
from fastdl.reference.rms_norm import rms_norm_with_statistics
from tests.simt.harness import Result, run
from tests.simt.norms.suite import expect
from tests.simt.row_norms.calls import PATHS, Call, make_case, results_of, runner
from tests.support.problems import Expected, Tensors, assert_solution, draws_of
from tests.support.row_norms import LAYER_NORM, RMS_NORM, RowNormCase

HALF = (torch.bfloat16, torch.float16)
OPERATORS = {operator.name: operator for operator in (LAYER_NORM, RMS_NORM)}

# A row's mean is a float32 beside it; its scale has lost some in the mean square and in the root.
UNITS_OF_MEANS, UNITS_OF_SCALES = 1.0, 4.0


@dataclass(frozen=True)
class Row:
    """A case of an op in one dtype, and what is expected of it."""

    op: str
    case: RowNormCase
    dtype: torch.dtype
    expected: Expected

    def __str__(self) -> str:
        return f"{self.op} {self.case.name} {self.dtype}"


def prepare(rows: Iterable[tuple[str, RowNormCase, torch.dtype]]) -> list[Row]:
    """The rows with their truth, which every machine, build and order is then held to."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # problems this small only wait for each other's threads
    try:
        return [Row(op, case, dtype, expect(OPERATORS[op], case, dtype)) for op, case, dtype in rows]
    finally:
        torch.set_num_threads(threads)


def rows_of(cases: Sequence[RowNormCase]) -> list[tuple[str, RowNormCase, torch.dtype]]:
    """Each case for both ops: in float32 for one, in another dtype, by turns, for the other."""
    rows = []
    for i, case in enumerate(cases):
        served = [dtype for dtype in (torch.float32, *HALF) if dtype in case.dtypes]
        halves = [dtype for dtype in served if dtype != torch.float32] or served
        for op, dtypes in zip(OPERATORS, (served, halves)[:: 1 if i % 2 else -1], strict=True):
            rows.append((op, case, dtypes[i // 2 % len(dtypes)]))
    return rows


def run_rows(rows: Sequence[Row], call: Call, variant: str = "plain", order: str = "forward") -> list[Result]:
    cases = [make_case(row.op, row.case, row.expected.problem, call) for row in rows]
    return run(runner(variant), cases, order, seed=len(rows))


def check_rows(rows: Sequence[Row], call: Call, variant: str = "plain", order: str = "forward") -> Counter[str]:
    """Parity of each row; those that are wrong are named in one error.

    Returns how often each kernel was launched, and each step taken by each path.
    """
    failures: list[str] = []
    reached: Counter[str] = Counter()
    for row, result in zip(rows, run_rows(rows, call, variant, order), strict=True):
        try:
            ours = results_of(result, row.expected.problem)
            check_statistics(row, result)
            try:
                check(row, call, ours)
            except AssertionError:
                expected = expect(OPERATORS[row.op], row.case, row.dtype, draws_of(row.case))
                check(replace(row, expected=expected), call, ours)
        except AssertionError as error:
            failures.append(f"{row} {variant} {order}: {error}")
        reached.update([*result.kernels, *steps_of(result)])
    assert not failures, f"{len(failures)} of {len(rows)} rows are wrong:\n" + "\n".join(failures[:20])
    return reached


def check(row: Row, call: Call, ours: Tensors) -> None:
    """The rule of the table, but for gradients that were not asked for, which must not be there."""
    wanted = {*call.wanted, *(["residual"] if "input" in call.wanted else [])}
    asked = {
        name: value
        for name, value in row.expected.truth.items()
        if not name.startswith("gradient of ") or name.removeprefix("gradient of ") in wanted
    }
    baseline = {name: row.expected.baseline[name] for name in asked}
    expected = Expected(row.expected.problem, asked, baseline, row.expected.typical)
    assert_solution(OPERATORS[row.op], row.case, ours, expected)


def check_statistics(row: Row, result: Result) -> None:
    ours, truth = torch.from_numpy(result.arrays["statistics"]).double(), statistics_of(row)
    assert torch.equal(ours.isfinite(), truth.isfinite()), f"statistics are {ours}, and not {truth}"
    size = truth.abs().clamp_min(torch.finfo(torch.float32).tiny)
    wrong = ((ours - truth).abs() / size).nan_to_num(0.0) / torch.finfo(torch.float32).eps
    assert (wrong[-1] <= UNITS_OF_SCALES).all(), f"scales are off by {float(wrong[-1].max()):.3g} units"
    if row.op == "layer_norm":
        # A mean that cancels is as wrong as the sum of what it is the mean of.
        wrong[0] *= truth[0].abs() / truth[0].abs().maximum(1 / truth[1])
        assert (wrong[0] <= UNITS_OF_MEANS).all(), f"means are off by {float(wrong[0].max()):.3g} units"


def statistics_of(row: Row) -> Tensor:
    """Each row's mean and scale in float64, of the sum as it was rounded."""
    case, tensors = row.case, row.expected.problem.tensors
    total = tensors["input"] + tensors["residual"] if "residual" in tensors else tensors["input"]
    if row.op == "layer_norm":
        return layer_norm_with_statistics(total.double(), None, None, None, case.dimensions, case.eps)[2]
    eps = torch.finfo(row.dtype).eps if case.eps is None else case.eps
    return rms_norm_with_statistics(total.double(), None, None, case.dimensions, eps)[2][None]


def steps_of(result: Result) -> list[str]:
    """For each of the two steps its path and width: ``forward warp vector``."""
    reports: dict[str, Any] = result.reports
    return [
        f"{step} {PATHS[reports[f'{step}.path']]} {'vector' if reports[f'{step}.vector'] else 'scalar'}"
        for step in ("forward", "backward")
        if f"{step}.path" in reports
    ]


def check_orders(rows: Sequence[Row], call: Call) -> None:
    """The same bits in every order of blocks, warps and lanes: nothing is summed in the order of arrival."""
    results = [run_rows(rows, call, order=order) for order in ("forward", "reversed", "random")]
    for row, *each in zip(rows, *results, strict=True):
        for result in each:
            result.check()
            for name, array in result.arrays.items():
                assert array.tobytes() == each[0].arrays[name].tobytes(), f"{row}: {name}"
