"""CUDA kernels of layer_norm and rms_norm on the host: the parity tests' rows in every build and order of threads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch

from tests.simt.harness import Case, Input, Machine, run
from tests.simt.row_norms import suite
from tests.simt.row_norms.calls import Call, given_gradients, make_case, results_of, runner
from tests.support.accuracy import assert_nonfinite_like
from tests.support.problems import Expected, Problem, make_problem, solve
from tests.support.row_norms import BASIC, CASES, RowNormCase

PARTS = 4
LARGEST = 40_000

# One multiprocessor: each block has many rows. A whole GPU's: no block has more than it must.
NARROW, USUAL, WIDE = Call(Machine(multiprocessors=1)), Call(), Call(Machine(multiprocessors=132))

ADDED: dict[str, Any] = {"added": "contiguous"}
# With these each kernel has rows that fill its teams and rows that do not, and blocks with several rows and with few.
REACHING = [
    RowNormCase("lanes_of_a_warp", (70, 24)),
    RowNormCase("lanes_of_a_warp_one_value_each", (70, 21), added="channels_outermost"),
    RowNormCase("a_warp", (30, 248), **ADDED),
    RowNormCase("a_warp_of_many_values", (30, 504), **ADDED),
    RowNormCase("a_warp_of_many_values_full", (14, 1024)),
    RowNormCase("a_block", (11, 1096), **ADDED),
    RowNormCase("a_block_full", (5, 4096)),
    RowNormCase("a_block_one_value_each", (11, 300), layout="storage_offset", added="storage_offset"),
    RowNormCase("a_block_one_value_each_full", (4, 2048), layout="storage_offset"),
    RowNormCase("streamed_one_value_each", (6, 4101), **ADDED),
    RowNormCase("streamed", (5, 16_392), grad_layout="expanded_everywhere"),
    RowNormCase("streamed_and_added", (2, 16_392), **ADDED),
    RowNormCase("streamed_by_backward_alone", (3, 12_296), parameter_dtype=torch.float32, **ADDED),
]
NAMES = {
    torch.float32: ("float", 4), torch.float16: ("fastdl::device::half_bits", 8),
    torch.bfloat16: ("fastdl::device::bfloat16_bits", 8),
}  # fmt: skip
ALL_STEPS = {
    f"{step} {path} {width}"
    for step in ("forward", "backward")
    for path in ("warp", "block", "streamed")
    for width in ("vector", "scalar")
}


def kernels_of(op: str, dtypes: Sequence[torch.dtype]) -> set[str]:
    """By the values of a vector, the vectors of a thread, and whether a block has a row."""
    found = set()
    centered = "true" if op == "layer_norm" else "false"
    for dtype in dtypes:
        name, width = NAMES[dtype]
        for step in ("forward", "backward"):
            many = 16 if step == "backward" and dtype == torch.float32 else 32
            held = [(1, 8, "false"), (1, 8, "true"), (width, 8 // width, "false")]
            held += [(width, many // width, block) for block in ("false", "true")]
            found |= {f"row_norm_{step}::held<{centered}, {name}, {v}, {s}, {block}>" for v, s, block in held}
            found |= {f"row_norm_{step}::streamed<{centered}, {name}, {v}>" for v in (1, width)}
        found |= {f"row_norm_backward::column_sums<{centered}, {name}, {v}>" for v in (1, width)}
    return {f"fastdl::cuda::{name}" for name in found} | {"fastdl::cuda::norm_merge::parameter_gradients"}


@cache
def reaching_rows(op: str, dtype: torch.dtype) -> list[suite.Row]:
    return suite.prepare((op, case, dtype) for case in REACHING)


@pytest.mark.parametrize("part", range(PARTS))
def test_parity(part: int) -> None:
    small = [case for case in CASES if torch.Size(case.shape).numel() <= LARGEST]
    rows = suite.prepare(suite.rows_of(small)[part::PARTS])
    suite.check_rows(rows, USUAL)
    suite.check_rows(rows[::3], NARROW, order="random")
    suite.check_rows(rows[1::3], WIDE, order="reversed")


def test_parity_of_large_problems() -> None:
    large = [case for case in CASES if torch.Size(case.shape).numel() > LARGEST]
    assert len(large) > 3
    suite.check_rows(suite.prepare(suite.rows_of(large)), USUAL, order="random")


@pytest.mark.parametrize("variant", ["plain", "race", "address"])
def test_every_kernel_is_right_in_every_build(variant: str) -> None:
    """A sanitizer sees one of the half precisions for each op: their kernels differ in how a value is widened."""
    for op, half in zip(suite.OPERATORS, suite.HALF, strict=True):
        dtypes = (torch.float32, *suite.HALF) if variant == "plain" else (torch.float32, half)
        rows = [row for dtype in dtypes for row in reaching_rows(op, dtype)]
        reached = suite.check_rows(rows, NARROW, variant, "random")
        if variant == "plain":
            reached += suite.check_rows(rows[::5], USUAL, variant, "reversed")
        assert sorted((kernels_of(op, dtypes) | ALL_STEPS) - reached.keys()) == []


def test_the_same_bits_in_every_order() -> None:
    rows = suite.prepare(suite.rows_of(REACHING))
    suite.check_orders(rows, NARROW)
    suite.check_orders(rows[::3], WIDE)


@pytest.mark.parametrize("wanted", [(), ("input",), ("weight",), ("bias",), ("weight", "bias"), ("input", "bias")])
def test_gradients_that_are_not_asked_for(wanted: tuple[str, ...]) -> None:
    cases = [RowNormCase("wanted", BASIC, **ADDED), RowNormCase("wanted_streamed", (3, 5000), layout="storage_offset")]
    for row in suite.prepare((op, case, torch.float32) for case in cases for op in suite.OPERATORS):
        suite.check_rows([row], replace(USUAL, wanted=wanted))


def test_no_block_of_a_plan_is_without_rows_and_few_leave_sums() -> None:
    """Sums that blocks leave are read again; one row of them for each row of the input would double the traffic."""
    cases = [RowNormCase(f"plan_{rows}x{width}", (rows, width)) for rows, width in ((3000, 32), (1500, 64), (40, 2048))]
    rows = suite.prepare(("rms_norm", case, torch.float32) for case in cases)
    for row, result in zip(rows, suite.run_rows(rows, USUAL), strict=True):
        result.check()
        assert 0 < result.reports["backward.sum_rows"] <= row.case.shape[0] / 4, row
        assert result.reports["backward.blocks"] == result.reports["backward.sum_rows"], row


@pytest.mark.parametrize("width", [24, 130, 1096, 2047, 5001, 6200])
def test_values_far_from_zero(width: int) -> None:
    """With mean 1e4 and deviation 1 torch's own gradients are off by 1e-4, and the table's rule allows as much.

    A float32 mean lacks up to 5e-4; the kernels take what it lacks from a second sum.
    """
    case = RowNormCase(f"far_{width}", (7, width), values="shifted")
    [row] = suite.prepare([("layer_norm", case, torch.float32)])
    [result] = suite.run_rows([row], USUAL)
    ours, truth = results_of(result, row.expected.problem), row.expected.truth
    for name, bound in (("output", 2e-6), ("gradient of input", 3e-6), ("gradient of weight", 2e-6)):
        scale = float(truth[name].abs().max())
        worst = float((ours[name].double() - truth[name]).abs().max())
        assert worst <= bound * scale, f"{name} is off by {worst:.3g} at scale {scale:.3g}"


@pytest.mark.parametrize("width", [3, 7, 24, 130, 1100, 5001, 17_000])
def test_a_constant_row_has_no_variance(width: int) -> None:
    """However far from zero it is: 1 / sqrt(variance) without eps is infinity, and neither large nor NaN."""
    case = RowNormCase(f"constant_{width}", (40, width), eps=0.0)
    problem = make_problem(suite.OPERATORS["layer_norm"], case, torch.float32)
    values = torch.randn(40, 1, generator=torch.Generator().manual_seed(width)) * 1e4
    problem = Problem({**problem.tensors, "input": values.expand(40, width).contiguous()}, problem.grad_output)
    [result] = run(runner("plain"), [make_case("layer_norm", case, problem, USUAL)])
    result.check()
    mean, scale = result.arrays["statistics"]
    assert (mean == values[:, 0].numpy()).all()
    assert np.isinf(scale).all()


@pytest.mark.parametrize("op", suite.OPERATORS)
def test_nonfinite_values_stand_where_torch_has_them(op: str) -> None:
    rows, places = [], []
    cases = [RowNormCase(f"nonfinite_{width}", (3, width)) for width in (20, 21, 1100, 5001)]
    for case in [*cases, RowNormCase("nonfinite_added", (3, 20), **ADDED)]:
        for where in ("input", "residual", "weight", "gradient"):
            for value in (float("nan"), float("inf"), float("-inf")) if where == "input" else (float("nan"),):
                problem = make_problem(suite.OPERATORS[op], case, torch.float32)
                tensors = {name: tensor.clone() for name, tensor in problem.tensors.items()}
                problem = Problem(tensors, problem.grad_output.clone())
                target = given_gradients(problem)[0] if where == "gradient" else tensors.get(where)
                if target is None:
                    continue
                target[(1, 7) if target.ndim == 2 else (7,)] = value
                baseline = solve(suite.OPERATORS[op], suite.OPERATORS[op].torch, case, problem)
                rows.append(suite.Row(op, case, torch.float32, Expected(problem, baseline, baseline, {})))
                places.append(f"{case.name} {value} in {where}")
    for row, place, result in zip(rows, places, suite.run_rows(rows, USUAL), strict=True):
        for name, ours in results_of(result, row.expected.problem).items():
            assert_nonfinite_like(f"{op} {place}: {name}", ours, row.expected.truth[name])


@pytest.mark.parametrize("variant", ["plain", "address"])
def test_parameters_that_begin_anywhere(variant: str) -> None:
    """No vector may be read of a weight or bias that does not begin at a multiple of 16 bytes."""
    case = RowNormCase("unaligned_parameters", (5, 64))
    [row] = suite.prepare([("layer_norm", case, torch.float32)])
    whole = make_case(row.op, case, row.expected.problem, USUAL)
    for name in ("weight", "bias"):
        given = whole.arrays[name]
        assert isinstance(given, Input)
        moved = replace(whole, arrays={**whole.arrays, name: replace(given, offset=4)})
        [result] = run(runner(variant), [moved])
        suite.check(row, USUAL, results_of(result, row.expected.problem))
        assert not result.reports["forward.vector"]


@pytest.mark.parametrize("strides", [(49, 16), (60, 19)], ids=["outer", "inner"])
@pytest.mark.parametrize("where", ["input", "residual", "gradient"])
def test_rows_that_lie_anywhere_though_the_first_is_aligned(where: str, strides: tuple[int, int]) -> None:
    """Rows of whole vectors in a tensor that begins at a multiple of 16 bytes, but further apart than that many."""
    case = RowNormCase("unaligned_rows", (4, 3, 16), **ADDED)
    for row in suite.prepare((op, case, torch.float32) for op in suite.OPERATORS):
        problem = row.expected.problem
        tensors, grad_output = dict(problem.tensors), problem.grad_output
        given = grad_output if where == "gradient" else tensors[where]
        outside = (400,) * (given.ndim - 3)
        moved = torch.zeros(800).as_strided(given.shape, (*outside, *strides, 1)).copy_(given)
        if where == "gradient":
            grad_output = moved
        else:
            tensors[where] = moved
        row = replace(row, expected=replace(row.expected, problem=Problem(tensors, grad_output)))
        [result] = suite.run_rows([row], USUAL, "address")
        suite.check(row, USUAL, results_of(result, row.expected.problem))
        assert result.reports["forward.vector"] == (where == "gradient")
        assert result.reports["backward.vector"] == (where != "gradient")


def test_more_rows_than_a_grid_has_blocks_are_an_error() -> None:
    scalars = {"rows": 1 << 40, "width": 4096, "centered": 1}
    [result] = run(runner("plain"), [Case("row_norm_of_too_many_rows", {"output": np.zeros(4, np.float32)}, scalars)])
    result.check()
    assert result.reports["status"] != 0
    assert result.kernels == []
