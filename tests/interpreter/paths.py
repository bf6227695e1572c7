"""Each path of the kernels by force, on shapes small enough for the interpreter, and what holds for all of them."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
import triton
import triton.language as tl
from torch import Tensor

import fastdl
from fastdl.kernels import batch_norm as batch_kernels
from fastdl.kernels import configs, normalize
from fastdl.kernels import group_norm as group_kernels
from fastdl.kernels.layout import View
from fastdl.kernels.parameters import sum_rows
from fastdl.kernels.tiles import outer_part, tile_offsets
from fastdl.reference.batch_norm import update_running_statistics
from tests.support import batch_norm, group_norm
from tests.support.problems import Case, Operator, check_parity, make_problem, solve

ON_CHIP = configs.Limits()
NEVER = {"forward_values": 0, "backward_values": 0, "backward_values_of_lines": 0}
PATHS = {
    "on_chip": ON_CHIP,
    "packed": replace(ON_CHIP, small_values=8192),
    "one_group_each": replace(ON_CHIP, small_values=1, line_bytes=2, segment_bytes=1),
    "split": replace(ON_CHIP, **NEVER, split_values=128, split_positions=32, reduce_programs=12, apply_programs=6),
    "split_long_chunks": replace(
        ON_CHIP, **NEVER, split_values=64, split_positions=16, reduce_programs=1, apply_programs=1, line_bytes=32
    ),
}

SHAPE = (2, 6, 5, 7)
CASES: list[tuple[Operator, Case]] = []
for layout in ("contiguous", "channels_last", "sliced_channels_last"):
    options: dict[str, Any] = {"layout": layout, "grad_layout": layout}
    CASES += [
        (group_norm.OPERATOR, group_norm.row(f"{layout}_3_groups", SHAPE, 3, **options)),
        (
            group_norm.OPERATOR,
            group_norm.row(f"{layout}_act_norm", SHAPE, 2, order="act_norm", residual=layout, **options),
        ),
        (batch_norm.OPERATOR, batch_norm.row(f"{layout}_residual", SHAPE, residual=layout, **options)),
        (batch_norm.OPERATOR, batch_norm.row(f"{layout}_evaluation", SHAPE, training=False, **options)),
        (batch_norm.OPERATOR, batch_norm.row(f"{layout}_act_norm", SHAPE, order="act_norm", **options)),
    ]
CASES += [
    (group_norm.OPERATOR, group_norm.row("groups_are_channels", SHAPE, 6)),
    (group_norm.OPERATOR, group_norm.row("one_group", SHAPE, 1, residual="contiguous")),
    (group_norm.OPERATOR, group_norm.row("wide_group", (2, 1030, 1, 2), 1, layout="channels_last")),
    (group_norm.OPERATOR, group_norm.row("ten_channels_a_group", (2, 40, 3, 3), 4, layout="channels_last")),
    (group_norm.OPERATOR, group_norm.row("shifted", (2, 6, 9, 11), 3, values="shifted", bounded=True)),
    (batch_norm.OPERATOR, batch_norm.row("shifted", (2, 6, 9, 11), values="shifted", bounded=True)),
    (batch_norm.OPERATOR, batch_norm.row("outlier", (2, 6, 9, 11), values="first_is_outlier")),
]
IDS = [f"{operator.name}-{case.name}" for operator, case in CASES]


@pytest.fixture
def path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setattr(configs, "LIMITS", PATHS[request.param])
    with fastdl.use_backend("triton"):
        yield request.param


# Above the cases, so that the paths of a case follow each other and its truth is computed once.
every_path = pytest.mark.parametrize("path", PATHS, indirect=True)


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the kernels launched, in order."""
    names: list[str] = []

    def launch(kernel: Any, programs: int, *arguments: Any, warps: int, **constants: Any) -> None:
        names.append(kernel.fn.__name__)
        kernel[(programs,)](*arguments, **constants)

    for module in (normalize, batch_kernels):
        monkeypatch.setattr(module, "launch", launch)
    return names


@every_path
@pytest.mark.parametrize(("operator", "case"), CASES, ids=IDS)
def test_every_path_is_right(path: str, launched: list[str], operator: Operator, case: Case) -> None:
    check_parity(operator, case, torch.float32, "triton")
    kept = not path.startswith("split")
    evaluates = case.name.endswith("evaluation")
    assert ("on_chip_forward" in launched) == (kept and not evaluates)
    assert ("on_chip_backward" in launched) == kept
    assert ("partial_moments" in launched) == (not kept and not evaluates)
    assert ("apply_forward" in launched) == (not kept or evaluates)
    assert ("apply_backward" in launched) == (not kept)


@pytest.mark.parametrize(("operator", "case"), CASES, ids=IDS)
def test_offsets_in_64_bits(monkeypatch: pytest.MonkeyPatch, operator: Operator, case: Case) -> None:
    """The code that tensors of 2**31 elements take, on small ones."""
    monkeypatch.setattr(configs, "FARTHEST", 0)
    monkeypatch.setattr(configs, "LIMITS", PATHS["split"])
    configs.problem_of.cache_clear()
    try:
        check_parity(operator, case, torch.float32, "triton")
    finally:
        configs.problem_of.cache_clear()


@triton.jit
def write_offsets(
    out, first_position, first_channel, sample, line, inner,
    UNIT: tl.constexpr, CHANNELS_LAST: tl.constexpr, BY_SAMPLE: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    p = first_position + tl.arange(0, 4)
    c = first_channel + tl.arange(0, 2)
    offsets = tile_offsets(p[:, None], c[None, :], sample, line, inner, UNIT, CHANNELS_LAST, BY_SAMPLE, WIDE)
    tl.store(out + tl.arange(0, 4)[:, None] * 2 + tl.arange(0, 2)[None, :], offsets.to(tl.int64))


@pytest.mark.parametrize(("channels_last", "by_sample"), list(itertools.product((False, True), repeat=2)))
def test_offsets_beyond_31_bits(channels_last: bool, by_sample: bool) -> None:
    unit, inner, sample, line = 4, 2**20, 2**29 + 1, 2**27 + 3
    position, channel = 2**21 + 5, 2**9 + 1
    out = torch.empty(4, 2, dtype=torch.int64)
    write_offsets[(1,)](out, position, channel, sample, line, inner, unit, channels_last, by_sample, True)
    for i, j in itertools.product(range(4), range(2)):
        p, c, start = position + i, channel + j, 0
        if by_sample:
            start, p = p // inner * sample * unit, p % inner
        expected = start + (p * line * unit + c if channels_last else c * line * unit + p)
        assert expected >= 2**31
        assert int(out[i, j]) == expected


@triton.jit
def write_outer_part(out, index, sample, UNIT: tl.constexpr):
    start = outer_part(out, index + tl.program_id(0), sample, UNIT, False)
    tl.store(out, start.to(tl.int64) - out.to(tl.int64))


def test_samples_that_are_far_apart() -> None:
    """A sample's start is counted in 64 bits even where offsets within it are not."""
    out = torch.empty(1, dtype=torch.int64)
    write_outer_part[(1,)](out, 3, 2**29 + 1, 4)
    assert out.item() == 3 * (2**29 + 1) * 4 * out.element_size()


def test_which_calls_need_64_bits() -> None:
    def wide(view: View, groups: int | None, *strides: tuple[int, int]) -> bool:
        return configs.problem_of(view, groups, 2, *(normalize.Strides(*s) for s in strides)).wide

    def view(samples: int, channels: int, positions: int, channels_last: bool = False) -> View:
        return View((samples, channels, positions), samples, channels, positions, channels_last, ())

    assert not wide(view(4, 2, 2**20), 1, (2**21, 2**20))
    assert wide(view(1, 2, 2**30 + 8), 1, (0, 2**30 + 8))
    assert not wide(view(4, 2, 2**29), 1, (2**30, 2**29))  # each sample's part is within reach of its start
    assert wide(view(4, 2, 2**29), None, (2**30, 2**29))  # batch norm counts through all samples
    assert wide(view(2, 3, 16), None, (2**31, 16))
    assert wide(view(1, 64, 2**25, True), 1, (0, 64))


@every_path
@pytest.mark.parametrize(("operator", "case"), CASES[:3], ids=IDS[:3])
def test_repeated_runs_give_the_same_bits(path: str, operator: Operator, case: Case) -> None:
    problem = make_problem(operator, case, torch.float32)
    one, other = (solve(operator, operator.ours, case, problem) for _ in range(2))
    for name, result in one.items():
        assert torch.equal(result, other[name]), name


@every_path
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_statistics_at_a_mean_far_above_the_deviation(path: str, layout: str) -> None:
    x = 1e4 + torch.randn(2, 6, 9, 11)
    if layout == "channels_last":
        x = x.contiguous(memory_format=torch.channels_last)
    _, grouped = group_kernels.forward(x, None, None, None, 3, 1e-5, "identity", 0.0, False)
    _, by_channel = batch_kernels.forward(x, None, None, None, None, None, 1e-5, "identity", 0.0, False)
    exact = x.double()
    for statistics, members in (
        (grouped, exact.reshape(2, 3, -1)),
        (by_channel, exact.transpose(0, 1).reshape(6, -1)),
    ):
        assert statistics.dtype == torch.float64
        expected = torch.stack([members.mean(-1), members.var(-1, correction=0)])
        assert statistics.shape == expected.shape
        torch.testing.assert_close(statistics[0], expected[0], rtol=0, atol=1e-6)
        torch.testing.assert_close(statistics[1], expected[1], rtol=1e-6, atol=0)


@every_path
def test_nothing_is_written_beyond_a_tensor(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Outputs lie in buffers with a margin on both sides, which must stay as it was."""
    margin, buffers = 4096, []

    def guarded(view: View, like: Tensor) -> Tensor:
        count = torch.Size(view.shape).numel()
        buffer = torch.full((count + 2 * margin,), 7.0, dtype=like.dtype)
        buffers.append((buffer, count))
        return buffer[margin : margin + count].as_strided(view.shape, view.dense, margin)

    monkeypatch.setattr(normalize, "empty_output", guarded)
    for (operator, case), dtype in zip(CASES[:9], itertools.cycle((torch.float32, torch.bfloat16)), strict=False):
        solve(operator, operator.ours, case, make_problem(operator, case, dtype))
    assert len(buffers) >= 2 * 9
    for buffer, count in buffers:
        assert (buffer[:margin] == 7).all()
        assert (buffer[margin + count :] == 7).all()


def test_how_many_launches_a_call_takes(launched: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    x, w = torch.randn(2, 12, 4, 4), torch.randn(12)
    statics = (1e-5, "relu", 0.0, False)

    def names(function: Any, *arguments: Any) -> list[str]:
        launched.clear()
        function(*arguments)
        return list(launched)

    _, grouped = group_kernels.forward(x, w, w, None, 3, *statics)
    _, by_channel = batch_kernels.forward(x, w, w, None, None, None, *statics)
    group_forward = (group_kernels.forward, x, w, w, None, 3, *statics)
    group_backward = (group_kernels.backward, x, x, w, w, None, grouped, 3, *statics)
    batch_backward = (batch_kernels.backward, x, x, w, w, None, None, None, by_channel, *statics)
    everything = [True, True, True, False]
    assert names(*group_forward) == ["on_chip_forward"]
    assert names(*group_backward, everything) == ["on_chip_backward", "sum_rows"]
    assert names(*group_backward, [True, False, False, False]) == ["on_chip_backward"]
    assert names(*batch_backward, everything) == ["on_chip_backward"]
    assert names(batch_kernels.forward, x, w, w, None, w, w * w, *statics) == ["apply_forward"]
    monkeypatch.setattr(configs, "LIMITS", PATHS["split"])
    assert names(*group_forward) == ["partial_moments", "merge_moments", "apply_forward"]
    assert names(*group_backward, everything) == ["partial_sums", "merge_sums", "apply_backward", "sum_rows"]
    assert names(*batch_backward, everything) == ["partial_sums", "merge_sums", "apply_backward"]


@pytest.mark.parametrize("path", ["on_chip", "split_long_chunks"], indirect=True)
@pytest.mark.parametrize("needs", list(itertools.product((False, True), repeat=4)))
def test_only_what_is_needed_is_computed(path: str, needs: tuple[bool, ...]) -> None:
    x, r, g = (torch.randn(2, 6, 3, 4) for _ in range(3))
    w, b, mean, variance = torch.randn(6), torch.randn(6), torch.randn(6), torch.rand(6) + 0.5
    group_statics = (2, 1e-5, "silu", 0.0, False)
    batch_statics = group_statics[1:]
    _, grouped = group_kernels.forward(x, w, b, r, *group_statics)
    _, given = batch_kernels.forward(x, w, b, r, mean, variance, *batch_statics)
    for function, arguments in (
        (group_kernels.backward, (g, x, w, b, r, grouped, *group_statics)),
        (batch_kernels.backward, (g, x, w, b, r, mean, variance, given, *batch_statics)),
    ):
        whole = function(*arguments, [True] * 4)
        part = function(*arguments, needs)
        for all_of_it, gradient, needed in zip(whole, part, needs, strict=True):
            assert (gradient is not None) == needed
            assert not needed or torch.equal(gradient, all_of_it)


def test_sums_over_more_rows_than_a_tile_holds() -> None:
    sums = torch.randn(2, 300, 5, generator=torch.Generator().manual_seed(0))
    gradients = torch.empty(2, 5)
    sum_rows[(1,)](*sums, *gradients, 300, 5, ROWS=128, CHANNELS=8)
    assert torch.equal(gradients, sums.double().sum(1).float())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("given", [(True, True), (True, False), (False, True)])
def test_running_statistics(dtype: torch.dtype, given: tuple[bool, bool]) -> None:
    batch = torch.stack([torch.randn(300), torch.rand(300) + 0.5]).double()
    running = [torch.rand(600).to(dtype)[::2] if there else None for there in given]
    expected = [None if tensor is None else tensor.double() for tensor in running]
    batch_kernels.update_running_statistics(*running, batch, 5, 0.3)
    update_running_statistics(*expected, batch, 5, 0.3)
    for ours, truth in zip(running, expected, strict=True):
        if ours is not None:
            # Rounded once; momentum is float32.
            rounding = 2**-8 if dtype == torch.bfloat16 else 2e-7
            torch.testing.assert_close(ours.double(), truth, rtol=rounding, atol=1e-7)
