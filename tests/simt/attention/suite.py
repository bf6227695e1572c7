"""Runs rows of attention's parity table on the host SIMT harness, and holds the results to the table's rule."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from tests.simt.attention.calls import Arguments, make_case, results_of, runner
from tests.simt.harness import Machine, run
from tests.support.accuracy import assert_as_right_as_torch
from tests.support.attention import Case, Expected, expected_of

HALF = (torch.bfloat16, torch.float16)
CPU = torch.device("cpu")

HOPPER = Machine(capability=90)
AMPERE = Machine(capability=80, shared_bytes=163 * 1024)
# So many multiprocessors that keys are split over blocks wherever they can be.
WIDE = Machine(capability=90, multiprocessors=132)

# What torch's composition keeps, backward computes again: weights from a float32 log-sum-exp, of which half a unit in
# the last place between 4 and 8 is two units in every weight of a row; and sum(gradient * weights) from an output that
# was rounded to half precision. Gradients behind the softmax have units for that, at the least scale of what cancels.
UNITS_OF_GRADIENTS = 4.0
LEAST_SCALE_OF_HALF = 0.25


@dataclass(frozen=True)
class Row:
    """A case in one dtype, and what is expected of it."""

    case: Case
    dtype: torch.dtype
    expected: Expected


def prepare(rows: Iterable[tuple[Case, torch.dtype]]) -> list[Row]:
    """The rows with their truth, which every machine, build and order is then held to."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # problems this small only wait for each other's threads
    try:
        return [Row(case, dtype, expected_of(case, dtype, CPU)) for case, dtype in rows]
    finally:
        torch.set_num_threads(threads)


def small_rows(cases: Sequence[Case], largest: int) -> list[tuple[Case, torch.dtype]]:
    """Rows of up to so many weights: by turns in each dtype that the kernels serve."""
    small = [case for case in cases if 0 < case.numbers <= largest and not case.slow]
    dtypes = (torch.float32, *HALF)
    rows = [(case, dtypes[i % 3]) for i, case in enumerate(small)]
    return [(case, dtype if dtype in case.dtypes else case.dtypes[0]) for case, dtype in rows]


def arguments_of(row: Row, machine: Machine) -> Arguments:
    case, problem = row.case, row.expected.problem
    tensors = problem.tensors
    mask = tensors.get("attn_mask")
    while mask is not None and mask.ndim < 4:
        mask = mask.unsqueeze(0)
    return Arguments(
        tensors["query"], tensors["key"], tensors["value"], mask, tensors.get("query_offset"), None, case.scale,
        case.softcap, case.limits, case.query_offset, case.dropout_p, case.seed, grad_output=problem.grad_output,
        grad_log_sum=problem.grad_log_sum.float() if case.with_log_sum else None, machine=machine,
    )  # fmt: skip


def solve(calls: Sequence[Arguments], variant: str = "plain", order: str = "forward", seed: int = 0) -> list[Any]:
    return run(runner(variant), [make_case(call) for call in calls], order, seed)


def check_rows(
    rows: Sequence[Row], machine: Machine, variant: str = "plain", order: str = "forward", seed: int = 5
) -> Counter[str]:
    """Runs the rows and checks them; how often each kernel was launched."""
    calls = [arguments_of(row, machine) for row in rows]
    launched: Counter[str] = Counter()
    for row, call, result in zip(rows, calls, solve(calls, variant, order, seed), strict=True):
        check(row, results_of(result, call))
        launched.update(name.removeprefix("fastdl::cuda::") for name in result.kernels)
    return launched


def check(row: Row, found: dict[str, Tensor]) -> None:
    """By the rule of `tests.support.attention.assert_solution`."""
    expected = row.expected
    assert found.keys() == expected.truth.keys(), f"{row.case.name}: {sorted(found)}"
    for name, result in found.items():
        cancels = name in ("gradient of query", "gradient of key", "gradient of attn_mask")
        assert_as_right_as_torch(
            f"{row.case.name} {row.dtype}: {name}", result.reshape(expected.truth[name].shape), expected.truth[name],
            expected.baseline[name], typical=expected.typical[name],
            bounded=name == "output" and not row.case.floor,
            floor=max(row.case.floor, LEAST_SCALE_OF_HALF if row.dtype in HALF else 0.0) if cancels else 0.0,
            units=UNITS_OF_GRADIENTS if cancels else 1.0,
        )  # fmt: skip


def check_orders(calls: Sequence[Arguments]) -> None:
    """The same bits in every order of blocks, warps and lanes: nothing is summed in the order of arrival."""
    results = [solve(calls, order=order) for order in ("forward", "reversed", "random")]
    for first, *others in zip(*results, strict=True):
        for other in others:
            first.check()
            other.check()
            for name, array in first.arrays.items():
                assert array.tobytes() == other.arrays[name].tobytes(), f"{dict(first.case.scalars)}: {name}"


def with_machine(calls: Iterable[Arguments], machine: Machine) -> list[Arguments]:
    return [replace(call, machine=machine) for call in calls]
