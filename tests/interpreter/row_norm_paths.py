"""Each path of the norms over rows by force, on shapes small enough for the interpreter, and what holds for all."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

import fastdl
from fastdl.kernels import layer_norm as layer_kernels
from fastdl.kernels import rms_norm as rms_kernels
from fastdl.kernels import row_norm, row_norm_layout
from fastdl.kernels import row_norm_plan as plan
from fastdl.kernels.row_norm_on_chip import row_starts
from tests.support.accuracy import assert_as_right_as_torch
from tests.support.problems import check_parity, make_problem, solve
from tests.support.row_norms import LAYER_NORM, RMS_NORM, RowNormCase

USUAL = plan.Limits()
NEVER = {"forward_columns": 0, "backward_columns": 0, "gradient_bytes": 0}
# Limits, and SMs that hold a warp each. With one or two of them a program has many tiles.
PATHS = {
    "on_chip": (USUAL, 132),
    "one_row_each": (replace(USUAL, forward_values=1, backward_values=1), 132),
    "in_turns": (replace(USUAL, backward_values=32, programs_each=1), 2),
    "by_columns": (replace(USUAL, backward_columns=0, column_rows=4, column_bytes=32, column_programs=1), 2),
    "wide": (replace(USUAL, **NEVER, wide_values=16, column_rows=1 << 20, column_programs=1), 1),
    "wide_in_parts": (replace(USUAL, **NEVER, wide_values=8, column_rows=4, column_programs=1), 30),
}
FORWARD = {"wide": {"wide_forward"}, "wide_in_parts": {"wide_moments", "wide_apply_forward"}}
BACKWARD = {
    "by_columns": {"row_norm_backward", "column_sums"},
    "wide": {"wide_backward", "column_sums"},
    "wide_in_parts": {"wide_sums", "wide_apply_backward", "column_sums"},
}

CASES = (
    RowNormCase("plain", (11, 40)),
    RowNormCase("odd_added", (2, 5, 37), added="contiguous"),
    RowNormCase("length_first", (3, 5, 24), layout="channels_outermost", added="channels_outermost"),
    RowNormCase("mixed", (3, 4, 24), layout="sliced_space", added="expanded_batch", grad_layout="channels_outermost"),
    RowNormCase("batch_expanded", (3, 4, 33), layout="expanded_batch", grad_layout="expanded_everywhere"),
    RowNormCase("three_of_four", (9, 2, 3, 5), dimensions=3, layout="sliced_batch", grad_layout="storage_offset"),
    RowNormCase("all", (5, 7), dimensions=2, added="reversed_dimensions"),
    RowNormCase("no_parameters", (9, 32), weight=False, bias=False, added="contiguous"),
    RowNormCase("no_bias", (9, 19), bias=False),
    RowNormCase("no_weight", (9, 19), weight=False),
    RowNormCase("width_1", (21, 1), floor=300.0),
    RowNormCase("shifted", (9, 70), values="shifted", bounded=True),
    RowNormCase("outlier", (7, 70), values="first_is_outlier"),
)
# Where RMS norm has code of its own.
OF_BOTH = ("plain", "odd_added", "mixed", "no_weight", "no_parameters", "shifted")
PROBLEMS = [(LAYER_NORM, case) for case in CASES] + [(RMS_NORM, case) for case in CASES if case.name in OF_BOTH]
IDS = [f"{operator.name}-{case.name}" for operator, case in PROBLEMS]


def clear_plans() -> None:
    for function in (plan.forward_on_chip, plan.backward_on_chip, plan.wide, plan.column_blocks):
        function.cache_clear()


@pytest.fixture
def path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    limits, processors = PATHS[request.param]
    monkeypatch.setattr(plan, "LIMITS", limits)
    monkeypatch.setattr(plan, "RESIDENT_WARPS", 1)
    monkeypatch.setattr(plan, "processors", lambda device: processors)
    with fastdl.use_backend("triton"):
        clear_plans()
        yield request.param
    clear_plans()


# Above the cases, so that the paths of a case follow each other and its truth is computed once.
every_path = pytest.mark.parametrize("path", PATHS, indirect=True)


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """The names of the kernels launched, in order, and how many programs of each."""
    names: list[tuple[str, int]] = []

    def launch(kernel: Any, programs: int, *arguments: Any, warps: int, **constants: Any) -> None:
        names.append((kernel.fn.__name__, programs))
        kernel[(programs,)](*arguments, **constants)

    monkeypatch.setattr(row_norm, "launch", launch)
    return names


@every_path
@pytest.mark.parametrize(("operator", "case"), PROBLEMS, ids=IDS)
def test_every_path_is_right(path: str, launched: list[tuple[str, int]], operator: Any, case: RowNormCase) -> None:
    check_parity(operator, case, torch.float32, "triton")
    found = {name for name, _ in launched} - {"sum_rows"}
    if path == "wide_in_parts" and case.name == "width_1":
        path = "wide"  # there is nothing to part
    backward = BACKWARD.get(path, {"row_norm_backward"})
    if not (case.weight or (case.bias and operator is LAYER_NORM)):
        backward = backward - {"column_sums"}
    assert found == FORWARD.get(path, {"row_norm_forward"}) | backward


@every_path
@pytest.mark.parametrize(
    ("operator", "case", "dtype"),
    [(*PROBLEMS[1], torch.bfloat16), (*PROBLEMS[2], torch.float16), (*PROBLEMS[len(CASES) + 2], torch.bfloat16)],
    ids=["odd-bfloat16", "length_first-float16", "mixed-bfloat16"],
)
def test_half_precision(path: str, operator: Any, case: RowNormCase, dtype: torch.dtype) -> None:
    check_parity(operator, replace(case, parameter_dtype=torch.float32), dtype, "triton")


@every_path
@pytest.mark.parametrize(("operator", "case"), [PROBLEMS[1], PROBLEMS[3]], ids=[IDS[1], IDS[3]])
def test_numbers_in_64_bits(path: str, monkeypatch: pytest.MonkeyPatch, operator: Any, case: RowNormCase) -> None:
    """The code that 2**31 rows or columns take, on small tensors."""
    monkeypatch.setattr(plan, "FARTHEST", 0)
    check_parity(operator, case, torch.float32, "triton")


@triton.jit
def write_starts(out, first, outer_step, inner_step, inner, UNIT: tl.constexpr, BY_OUTER: tl.constexpr):
    row = first + tl.arange(0, 4)
    tl.store(out + tl.arange(0, 4), row_starts(row, outer_step, inner_step, inner, UNIT, BY_OUTER))


@pytest.mark.parametrize("by_outer", [False, True])
def test_rows_that_are_far_apart(by_outer: bool) -> None:
    unit, inner, outer_step, inner_step, first = 4, 1000, 2**29 + 1, 2**27 + 3, 2**21 + 998
    out = torch.empty(4, dtype=torch.int64)
    write_starts[(1,)](out, first, outer_step, inner_step, inner, unit, by_outer)
    for i, row in enumerate(range(first, first + 4)):
        expected = row * inner_step * unit
        if by_outer:
            expected = (row // inner) * outer_step * unit + (row % inner) * inner_step * unit
        assert expected >= 2**31
        assert int(out[i]) == expected


def test_which_calls_need_64_bits() -> None:
    def wide(*shape: int) -> bool:
        rows, *_ = row_norm_layout.arrange(shape, 1, ((shape[1], 1),), 2)
        return row_norm.constants(rows, True)["WIDE"]

    assert not wide(2**30, 64)  # each row's start is counted in 64 bits anyway
    assert wide(2**31 - 1, 1)
    assert wide(1, 2**31)


@every_path
def test_repeated_runs_give_the_same_bits(path: str) -> None:
    problem = make_problem(LAYER_NORM, CASES[1], torch.float32)
    one, other = (solve(LAYER_NORM, LAYER_NORM.ours, CASES[1], problem) for _ in range(2))
    for name, result in one.items():
        assert torch.equal(result, other[name]), name


@every_path
@pytest.mark.parametrize("centre", [1e4, 1e6])
def test_statistics_at_a_mean_far_above_the_deviation(path: str, centre: float) -> None:
    """At 1e6 a mean of float32 is off by up to 0.03 deviations, the square of which must not be in the variance."""
    x = centre + torch.randn(7, 90, generator=torch.Generator().manual_seed(3))
    output, none, statistics = layer_kernels.forward(x, None, None, None, 1, 1e-5)
    exact = x.double()
    mean, variance = exact.mean(1), exact.var(1, correction=0)
    assert none is None
    assert statistics.dtype == torch.float32
    assert statistics.shape == (2, 7)
    torch.testing.assert_close(statistics[0].double(), mean, rtol=6e-8, atol=0)  # rounded once
    torch.testing.assert_close(statistics[1].double(), (variance + 1e-5).rsqrt(), rtol=5e-7, atol=0)
    expected = (exact - mean[:, None]) * (variance + 1e-5).rsqrt()[:, None]
    torch.testing.assert_close(output.double(), expected, rtol=1e-6, atol=2e-6)
    _, _, scale = rms_kernels.forward(x, None, None, 1, 1e-5)
    assert scale.shape == (7,)
    torch.testing.assert_close(scale.double(), exact.square().mean(1).rsqrt(), rtol=5e-7, atol=0)


@every_path
def test_gradients_at_a_mean_far_above_the_deviation(path: str) -> None:
    """The mean that is saved is off by up to 0.03 deviations; the gradients must not be."""
    generator = torch.Generator().manual_seed(3)
    x, g = 1e6 + torch.randn(7, 90, generator=generator), torch.randn(7, 90, generator=generator) + 1
    w, b = torch.rand(2, 90, generator=generator) + 0.5
    _, _, statistics = layer_kernels.forward(x, None, w, b, 1, 1e-5)
    found = layer_kernels.backward(g, None, x, None, w, b, statistics, 1, 1e-5, [True] * 4)
    wide = [t.double().requires_grad_() for t in (x, w, b)]
    truth = torch.autograd.grad(F.layer_norm(wide[0], (90,), *wide[1:], 1e-5), wide, g.double())
    for ours, expected in zip((found[0], *found[2:]), truth, strict=True):
        torch.testing.assert_close(ours.double(), expected, rtol=0, atol=2e-5)


@every_path
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_sum_is_rounded_before_its_statistics(path: str, dtype: torch.dtype) -> None:
    """What backward sees of the residual is the rounded sum: one value alone, the others lost, has no deviation."""
    x = torch.full((3, 20), 2048.0, dtype=dtype)
    r = torch.full((3, 20), 0.4, dtype=dtype)
    _, sum, statistics = layer_kernels.forward(x, r, None, None, 1, 0.25)
    assert torch.equal(sum, x + r)
    assert torch.equal(statistics, torch.tensor([[2048.0] * 3, [2.0] * 3]))


@every_path
def test_nothing_is_written_beyond_a_tensor(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Results lie in buffers with a margin on both sides, which must stay as it was."""
    margin, buffers = 512, []

    def guarded(like: Tensor) -> Tensor:
        count = math.prod(like.shape)
        buffer = torch.full((count + 2 * margin,), 7.0, dtype=like.dtype)
        buffers.append((buffer, count))
        return buffer[margin : margin + count].view(like.shape)

    monkeypatch.setattr(row_norm, "empty_like", guarded)
    for shape in ((13, 37), (5, 24)):
        x, r, g = (torch.randn(shape) for _ in range(3))
        w, b = torch.randn(2, shape[1])
        _, _, statistics = layer_kernels.forward(x, r, w, b, 1, 1e-5)
        layer_kernels.backward(g, r, x, None, w, b, statistics, 1, 1e-5, [True] * 4)
    assert len(buffers) == 10
    for buffer, count in buffers:
        assert (buffer[:margin] == 7).all()
        assert (buffer[margin + count :] == 7).all()
        assert not (buffer[margin : margin + count] == 7).any()


@pytest.mark.parametrize("path", ["on_chip", "by_columns", "wide", "wide_in_parts"], indirect=True)
@pytest.mark.parametrize("needs", list(itertools.product((False, True), repeat=3)))
def test_only_what_is_needed_is_computed(
    path: str, launched: list[tuple[str, int]], needs: tuple[bool, bool, bool]
) -> None:
    x, g, gs = (torch.randn(9, 21) for _ in range(3))
    w, b = torch.randn(2, 21)
    _, _, statistics = layer_kernels.forward(x, None, w, b, 1, 1e-5)
    arguments = (g, gs, x, None, w, b, statistics, 1, 1e-5)
    whole = layer_kernels.backward(*arguments, [True] * 4)
    launched.clear()
    part = layer_kernels.backward(*arguments, [needs[0], True, *needs[1:]])
    assert bool(launched) == any(needs)
    assert ("sum_rows" in [name for name, _ in launched]) <= any(needs[1:])
    for all_of_it, gradient, needed in zip(whole, part, (needs[0], False, *needs[1:]), strict=True):
        assert (gradient is not None) == needed
        # The sums over rows may be taken in another order where nothing else is wanted.
        assert not needed or torch.allclose(gradient, all_of_it, rtol=1e-5, atol=1e-6)
    _, none, weight = rms_kernels.backward(g, None, x, None, w, statistics[1], 1, 1e-5, [False, True, needs[1]])
    assert none is None
    assert (weight is not None) == needs[1]


@pytest.mark.parametrize("path", ["in_turns"], indirect=True)
def test_programs_take_turns(path: str, launched: list[tuple[str, int]]) -> None:
    """Two programs go over 12 tiles each, the last of them not full."""
    x, w = torch.randn(93, 7), torch.randn(7)
    _, _, statistics = layer_kernels.forward(x, None, w, w, 1, 1e-5)
    launched.clear()
    layer_kernels.backward(x, None, x, None, w, w, statistics, 1, 1e-5, [True] * 4)
    assert launched == [("row_norm_backward", 2), ("sum_rows", 1)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_sums_over_many_rows(monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype) -> None:
    """100,000 rows, of which a place in a tile adds up a few dozen: as exact as torch's own."""
    monkeypatch.setattr(plan, "processors", lambda device: 2)
    generator = torch.Generator().manual_seed(1)
    x, g = ((torch.randn(100_000, 2, generator=generator) + 0.5).to(dtype) for _ in range(2))
    w, b = torch.rand(2, 2, generator=generator) + 0.5
    _, _, statistics = layer_kernels.forward(x, None, w, b, 1, 1e-5)
    found = layer_kernels.backward(g, None, x, None, w, b, statistics, 1, 1e-5, [False, False, True, True])

    def gradients(to: torch.dtype) -> tuple[Tensor, ...]:
        parameters = [p.to(torch.promote_types(to, torch.float32)).requires_grad_() for p in (w, b)]
        return torch.autograd.grad(F.layer_norm(x.to(to), (2,), *parameters, 1e-5), parameters, g.to(to))

    for ours, truth, baseline in zip(found[2:], gradients(torch.float64), gradients(dtype), strict=True):
        assert_as_right_as_torch("sums", ours, truth, baseline)


@every_path
@pytest.mark.parametrize(("shape", "dimensions"), [((0, 8), 1), ((3, 0, 8), 1), ((4, 0), 1), ((2, 3, 0), 2)])
def test_empty_tensors(path: str, shape: tuple[int, ...], dimensions: int) -> None:
    x = torch.empty(shape)
    rows = math.prod(shape[: len(shape) - dimensions])
    w = torch.full(shape[len(shape) - dimensions :], float("nan"))
    output, sum, statistics = layer_kernels.forward(x, x, w, w, dimensions, 1e-5)
    assert output.shape == sum.shape == shape
    assert statistics.shape == (2, rows)
    grad_x, none, grad_weight, grad_bias = layer_kernels.backward(
        x, None, x, None, w, w, statistics, dimensions, 1e-5, [True] * 4
    )
    assert grad_x.shape == shape
    assert none is None
    assert torch.equal(grad_weight, torch.zeros_like(w))
    assert torch.equal(grad_bias, torch.zeros_like(w))


@every_path
@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_a_row_that_is_not_finite_spoils_no_other(path: str, poison: float) -> None:
    x, g = torch.randn(2, 9, 21)
    x[4, 3] = poison
    _, _, statistics = layer_kernels.forward(x, None, None, None, 1, 1e-5)
    output, _, scale = rms_kernels.forward(x, None, None, 1, 1e-5)
    assert output[4].isnan().any()
    keep = torch.arange(9) != 4
    assert output[keep].isfinite().all()
    assert statistics[:, keep].isfinite().all()
    grad_x, *_ = layer_kernels.backward(g, None, x, None, None, None, statistics, 1, 1e-5, [True] * 4)
    assert grad_x[4].isnan().all()
    assert grad_x[keep].isfinite().all()
    grad_x, *_ = rms_kernels.backward(g, None, x, None, None, scale, 1, 1e-5, [True] * 3)
    assert grad_x[keep].isfinite().all()


@every_path
def test_constant_rows_of_huge_values(path: str) -> None:
    """Their mean times their reciprocal deviation is beyond float32, and what lies behind a row's end must not be."""
    x, g = torch.full((4, 3), 2.0**123), torch.randn(4, 3)
    _, _, statistics = layer_kernels.forward(x, None, None, None, 1, 1e-5)
    grad_x, *_ = layer_kernels.backward(g, None, x, None, None, None, statistics, 1, 1e-5, [True] * 4)
    expected = (g - g.mean(1, keepdim=True)) * 1e-5**-0.5
    torch.testing.assert_close(grad_x, expected, rtol=1e-5, atol=1e-4)


def view(*sizes: int) -> Tensor:
    return torch.empty(sizes, dtype=torch.bfloat16)


@pytest.mark.parametrize(
    ("tensors", "dimensions", "in_place", "inner", "unit"),
    [
        ((view(6, 24),), 1, (True,), 6, 8),
        ((view(3, 2, 24), view(3, 2, 24)), 1, (True, True), 6, 8),
        ((view(3, 2, 20),), 1, (True,), 6, 4),
        ((view(3, 2, 25),), 1, (True,), 6, 1),
        ((view(6, 40)[:, 8:32],), 1, (True,), 6, 8),
        ((view(6, 25)[:, :24],), 1, (True,), 6, 1),  # rows 50 bytes apart
        ((view(6, 24), view(6, 25)[:, :24]), 1, (True, True), 6, 1),
        ((view(2, 3, 24).transpose(0, 1), view(3, 2, 24)), 1, (True, True), 2, 8),
        ((view(5, 2, 3, 24).transpose(0, 2),), 1, (False,), 30, 8),
        ((view(3, 1, 24).expand(3, 5, 24),), 1, (True,), 5, 8),
        ((view(1, 1, 24).expand(3, 5, 24),), 1, (True,), 15, 8),
        ((view(24).expand(3, 5, 24), view(3, 5, 24)), 1, (True, True), 15, 8),
        ((view(3, 5, 1).expand(3, 5, 24), view(3, 5, 24)), 1, (False, True), 15, 8),
        ((view(24, 6).t(), view(6, 24)), 1, (False, True), 6, 8),
        ((view(4, 3, 2, 8).transpose(0, 1)[..., :4], view(3, 4, 2, 4)), 2, (False, True), 12, 8),
        ((view(4, 3, 2, 4).transpose(0, 1), view(3, 4, 2, 4)), 2, (True, True), 4, 8),
        # Each breaks in another place: the two that agree are read where they are.
        (
            (view(4, 3, 2, 8)[::2], view(2, 6, 2, 8)[:, ::2], view(2, 6, 2, 8)[:, ::2]),
            1, (False, True, True), 2, 8,
        ),
        (
            (view(2, 3, 4, 8)[:, :2], view(2, 2, 5, 8)[:, :, :4], view(2, 2, 5, 8)[:, :, 1:]),
            1, (False, True, True), 4, 8,
        ),
        (
            (view(2, 2, 5, 8)[:, :, :4], view(2, 3, 4, 8)[:, :2], view(2, 3, 4, 8)[:, :2]),
            1, (False, True, True), 8, 8,
        ),
        ((view(1, 24)[:, :7],), 1, (True,), 1, 1),
        ((view(5, 24),), 2, (True,), 1, 8),
    ],
)  # fmt: skip
def test_what_is_read_in_place(
    tensors: tuple[Tensor, ...], dimensions: int, in_place: tuple[bool, ...], inner: int, unit: int
) -> None:
    rows, read, steps = row_norm_layout.rows_of(tensors, dimensions)
    assert tuple(one is other for one, other in zip(tensors, read, strict=True)) == in_place
    assert (rows.inner, rows.unit) == (inner, unit)
    assert rows.rows * rows.width == tensors[0].numel()
    for tensor, step in zip(read, steps, strict=True):
        flat = tensor.flatten(tensor.ndim - dimensions).flatten(0, -2) if tensor.ndim > dimensions else tensor[None]
        for r in range(rows.rows):
            at = (r // inner) * step.outer + (r % inner) * step.inner
            leading = tensor.shape[: tensor.ndim - dimensions]
            index = torch.unravel_index(torch.tensor(r), leading) if leading else ()
            assert at == sum(int(i) * s for i, s in zip(index, tensor.stride(), strict=False)), flat.shape
