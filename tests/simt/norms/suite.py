"""Runs rows of the parity tables on the host SIMT harness, and holds the results to the rule of ``tests.support``."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tests.simt.harness import Machine, Result, run
from tests.simt.norms.calls import PATHS, Call, make_case, results_of, runner
from tests.support.accuracy import assert_nonfinite_like, relative_error
from tests.support.problems import (
    Expected,
    Operator,
    Problem,
    Tensors,
    assert_solution,
    draws_of,
    make_problem,
    solve,
)  # fmt: skip

# (2, ...), the means and biased variances of a case's input.
Definition = Callable[[Any, Tensor], Tensor]

HALF = (torch.bfloat16, torch.float16)

# One machine a path: shared memory that holds a slab, or too little for the larger ones, so that they are split into
# several parts even where the shape is small.
BLOCK = Call("block")
CLUSTER = Call("cluster")
SPLIT = Call("split", Machine(shared_bytes=24 * 1024, capability=80))


@dataclass(frozen=True)
class Row:
    """A case in one dtype, and what is expected of it."""

    case: Any
    dtype: torch.dtype
    expected: Expected


def small_rows(operator: Operator, largest: int) -> list[tuple[Any, torch.dtype]]:
    """The table's rows of up to so many values: all in float32, every other one in bfloat16 or float16 by turns."""
    rows: list[tuple[Any, torch.dtype]] = []
    for index, case in enumerate(operator.cases):
        if torch.Size(case.shape).numel() > largest or case.slow:
            continue
        halves = [dtype for dtype in HALF if dtype in case.dtypes]
        rows += [(case, dtype) for dtype in case.dtypes if dtype == torch.float32]
        if halves and (index % 2 == 0 or torch.float32 not in case.dtypes):
            rows.append((case, halves[index // 2 % len(halves)]))
    return rows


def prepare(operator: Operator, rows: Iterable[tuple[Any, torch.dtype]]) -> list[Row]:
    """The rows with their truth, which every path, build and order is then held to."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # problems this small only wait for each other's threads
    try:
        return [Row(case, dtype, expect(operator, case, dtype)) for case, dtype in rows]
    finally:
        torch.set_num_threads(threads)


def expect(operator: Operator, case: Any, dtype: torch.dtype, draws: int = 2) -> Expected:
    """`tests.support.problems.expected_of` with fewer draws of the same problems, which are most of its time.

    What is allowed grows with the draws, so that a result that these allow is right by the rule of the tables.
    """
    problems = [make_problem(operator, case, dtype, "cpu", draw) for draw in range(draws)]
    truths = [solve(operator, operator.reference, case, problem, double=True) for problem in problems]
    baselines = [solve(operator, operator.torch, case, problem) for problem in problems]
    scale_of = dict(operator.cancelling)
    typical = {
        name: max(
            relative_error(baseline[name], truth[name], truth[scale_of.get(name, name)])
            for baseline, truth in zip(baselines, truths, strict=True)
        )
        for name in truths[0]
    }
    return Expected(problems[0], truths[0], baselines[0], typical)


def check_orders(operator: Operator, rows: Sequence[Row], call: Call) -> None:
    """The same bits in every order of blocks, warps and lanes: nothing is summed in the order of arrival."""
    results = [run_rows(operator, rows, call, order=order) for order in ("forward", "reversed", "random")]
    for row, *each in zip(rows, *results, strict=True):
        for result in each:
            result.check()
            for name, array in result.arrays.items():
                assert array.tobytes() == each[0].arrays[name].tobytes(), f"{row.case.name} {row.dtype}: {name}"


def check_far_from_zero(operator: Operator, rows: Sequence[Row], call: Call, definition: Definition) -> None:
    """What is saved for backward, and the input's gradient, of values with mean 1e4 and deviation 1.

    torch's own gradient is off by 1e-4 there, so that the tables' rule allows as much; a float32 mean that is split in
    two loses nothing.
    """
    for row, result in zip(rows, run_rows(operator, rows, call), strict=True):
        ours = results_of(result, row.expected.problem)["gradient of input"]
        truth = definition(row.case, row.expected.problem.tensors["input"].double()).numpy()
        mean, variance = result.arrays["statistics"]
        np.testing.assert_allclose(mean, truth[0], rtol=0, atol=1e-5, err_msg=f"{row.case.name}: mean")
        np.testing.assert_allclose(variance, truth[1], rtol=1e-5, err_msg=f"{row.case.name}: variance")
        gradient = row.expected.truth["gradient of input"]
        torch.testing.assert_close(ours.double(), gradient, rtol=0, atol=3e-6 * float(gradient.abs().max()))


def check_nonfinite(operator: Operator, cases: Sequence[Any], call: Call) -> None:
    """NaN and the infinities, put into each tensor by turns, come out where torch has them."""
    rows: list[Row] = []
    places: list[str] = []
    for case in cases:
        for where in ("input", "gradient", "weight", "residual"):
            for value in (float("nan"), float("inf"), float("-inf")) if where == "input" else (float("nan"),):
                problem = make_problem(operator, case, torch.float32)
                tensors = {name: tensor.clone() for name, tensor in problem.tensors.items()}
                problem = Problem(tensors, problem.grad_output.clone())
                target = problem.grad_output if where == "gradient" else tensors.get(where)
                if target is None:
                    continue
                target[(1, 2, 3, 1) if target.ndim == 4 else (2,)] = value
                baseline = solve(operator, operator.torch, case, problem)
                rows.append(Row(case, torch.float32, Expected(problem, baseline, baseline, {})))
                places.append(f"{case.name} {value} in {where}")
    for row, place, result in zip(rows, places, run_rows(operator, rows, call), strict=True):
        for name, ours in results_of(result, row.expected.problem).items():
            expected = row.expected.truth[name]
            if name in operator.updated:
                # torch leaves an infinity where a mean of infinities makes a NaN; neither is of use.
                assert torch.equal(ours.isfinite(), expected.isfinite()), f"{place}: {name}"
            else:
                assert_nonfinite_like(f"{place}: {name}", ours, expected)


def all_draws(operator: Operator, row: Row) -> Row:
    return Row(row.case, row.dtype, expect(operator, row.case, row.dtype, draws_of(row.case)))


def run_rows(
    operator: Operator, rows: Sequence[Row], call: Call, variant: str = "plain", order: str = "forward"
) -> list[Result]:
    cases = [make_case(operator.name, row.case, row.expected.problem, call) for row in rows]
    return run(runner(variant), cases, order, seed=len(rows))


def check_rows(
    operator: Operator, rows: Sequence[Row], call: Call, variant: str = "plain", order: str = "forward"
) -> Counter[str]:
    """Parity of each row; those that are wrong are named in one error.

    Returns how often each kernel was launched, and each step taken by each path.
    """
    failures: list[str] = []
    reached: Counter[str] = Counter()
    for row, result in zip(rows, run_rows(operator, rows, call, variant, order), strict=True):
        try:
            ours = results_of(result, row.expected.problem)
            try:
                check(operator, row, call, ours)
            except AssertionError:
                check(operator, all_draws(operator, row), call, ours)
        except AssertionError as error:
            failures.append(f"{row.case.name} {row.dtype} {call.path} {variant} {order}: {error}")
        reached.update([*result.kernels, *steps_of(result)])
    assert not failures, f"{len(failures)} of {len(rows)} rows are wrong:\n" + "\n".join(failures[:20])
    return reached


def check(operator: Operator, row: Row, call: Call, ours: Tensors) -> None:
    """The rule of the tables, but for gradients that were not asked for, which must not be there."""
    asked = {
        name: value
        for name, value in row.expected.truth.items()
        if not name.startswith("gradient of ") or name.removeprefix("gradient of ") in call.wanted
    }
    baseline = {name: row.expected.baseline[name] for name in asked}
    expected = Expected(row.expected.problem, asked, baseline, row.expected.typical)
    assert_solution(operator, row.case, ours, expected)


def steps_of(result: Result) -> list[str]:
    """For each of the two steps its path, layout and width: ``forward cluster rows vector``."""
    reports = result.reports
    return [
        " ".join(
            (
                step,
                PATHS[reports[f"{step}.path"]],
                "rows" if reports[f"{step}.rows"] else "strips",
                "vector" if reports[f"{step}.vector"] else "scalar",
            )
        )
        for step in ("forward", "backward")
        if f"{step}.path" in reports
    ]


def reaching_rows(operator: Operator, further: Sequence[Any]) -> list[tuple[Any, torch.dtype]]:
    """A few of the table's rows and the ``further`` ones, in every dtype: together they are to reach every kernel."""
    names = {
        "input_contiguous", "input_channels_last", "input_storage_offset", "input_sliced_channels",
        "training_input_sliced_channels", "training_input_contiguous",
        "evaluation_input_channels_last", "training_input_storage_offset", "sweep_2x33x3x5_groups3_gelu_channels_last",
        "contiguous_gradient_channels_last", "residual_channels_last", "act_norm_residual",
        "training_act_norm_residual", "positions_255_contiguous", "no_parameters", "training_no_parameters",
    }  # fmt: skip
    cases = [*(case for case in operator.cases if case.name in names), *further]
    return [(case, dtype) for case in cases for dtype in (torch.float32, *HALF) if dtype in case.dtypes]


ALL_STEPS = {
    f"{step} {path} {layout} {width}"
    for step in ("forward", "backward")
    for path in ("block", "cluster", "split")
    for layout in ("strips", "rows")
    for width in ("vector", "scalar")
}

# By the values that a vector holds: 1 where addresses allow no more.
ALL_KERNELS = {
    f"fastdl::cuda::{layout}_{step}::kernel<{dtype}, {width}>"
    for layout in ("strips", "rows")
    for step in ("forward", "backward")
    for dtype, widths in (
        ("float", (1, 4)),
        ("fastdl::device::half_bits", (1, 8)),
        ("fastdl::device::bfloat16_bits", (1, 8)),
    )
    for width in widths
} | {f"fastdl::cuda::norm_merge::{name}" for name in ("moments", "sums")}
