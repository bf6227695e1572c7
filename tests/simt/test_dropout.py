"""Dropout's CUDA kernels on the host: the definition's choices by every path, in every build and order of threads."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.simt.dropout.calls import Call, contiguous, expected, make_case, output_of, runner
from tests.simt.harness import run

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
COMBINATIONS = tuple(itertools.product(DTYPES, (False, True)))
NAMES = {
    torch.float32: ("float", 4), torch.float16: ("fastdl::device::half_bits", 8),
    torch.bfloat16: ("fastdl::device::bfloat16_bits", 8),
}  # fmt: skip
WIDTHS = (1, 3, 7, 8, 9, 64, 100, 197, 768)
CHANNELS = (1, 3, 8, 12, 16, 31, 33, 40)
PROBABILITIES = (0.1, 0.5, 1.0, 2.0**-16, 0.9)
SEEDS = (0, -1, 1 << 40, 0x123456789ABCDEF)
# More than one block of the kernels over contiguous values.
SEVERAL_BLOCKS = 9000

# Every kernel, with rows and octets that cross from block to block and a last block that is not full.
REACHING = (
    contiguous(1130, 8),
    contiguous(47, 192),
    contiguous(1300, 7),
    contiguous(46, 197),
    contiguous(47, 192, offsets=(4, 4, 4)),
    Call((2, 3, 45, 35)),
    Call((2, 5, 64, 14), offsets=(4, 4, 4)),
    Call((2, 16, 13, 11)),
    Call((2, 40, 6, 8)),
    Call((2, 33, 4, 9)),
)


def options(i: int) -> dict[str, Any]:
    """Six in a row have every dtype with and without a residual."""
    dtype, residual = COMBINATIONS[i % 6]
    rest = {"p": PROBABILITIES[i % 5], "seed": SEEDS[i % 4], "on_device": i % 7 % 2 == 0}
    return {"dtype": dtype, "residual": residual, **rest}


def check(calls: Sequence[Call], variant: str = "plain", order: str = "forward") -> set[str]:
    """Every value to the bit; the calls that are wrong are named in one error. Returns which kernels were launched."""
    values = [call.values() for call in calls]
    cases = [make_case(call, given) for call, given in zip(calls, values, strict=True)]
    wrong, kernels = [], set()
    for call, given, result in zip(calls, values, run(runner(variant), cases, order, len(calls)), strict=True):
        try:
            assert_same(output_of(result, call), expected(call, given))
        except AssertionError as error:
            wrong.append(f"{call} {variant} {order} {result.kernels}: {error}")
        kernels.update(result.kernels)
    assert not wrong, f"{len(wrong)} of {len(calls)} calls are wrong:\n" + "\n".join(wrong[:10])
    return kernels


def assert_same(ours: Tensor, truth: Tensor) -> None:
    torch.testing.assert_close(ours, truth, rtol=0, atol=0, equal_nan=True)


def kernels_of(dtypes: Sequence[torch.dtype]) -> set[str]:
    found = set()
    for dtype, residual in itertools.product(dtypes, ("false", "true")):
        name, width = NAMES[dtype]
        found.add(f"dense<{name}, {residual}>")
        for kernel, values in itertools.product(("packed", "channels_last"), (1, width)):
            found.add(f"{kernel}<{name}, {values}, {residual}>")
    return {f"fastdl::cuda::dropout::{name}" for name in found}


@pytest.mark.parametrize("width", WIDTHS)
def test_parity_of_contiguous_rows(width: int) -> None:
    rows = SEVERAL_BLOCKS // width + 1
    calls = [contiguous(rows, width, **options(width + i)) for i in range(6)]
    check([*calls, *(contiguous(rows, width, **options(width + i)) for i, rows in enumerate((1, 2, 5)))])


@pytest.mark.parametrize("channels", CHANNELS)
def test_parity_of_channels_last(channels: int) -> None:
    shapes = ((2, channels, 5, 17), (1, channels, 1, 1), (3, channels, 2, 8), (1, channels, 7, 33))
    check([Call(shape, **options(channels + i + 6 * j)) for j, shape in enumerate(shapes) for i in range(6)])


@pytest.mark.parametrize("variant", ["plain", "race", "address"])
def test_every_kernel_is_right_in_every_build(variant: str) -> None:
    """A sanitizer sees one of the half precisions: they differ in how a value is widened."""
    dtypes = DTYPES if variant == "plain" else (torch.float32, torch.bfloat16)
    calls = [
        replace(call, dtype=dtype, residual=residual, p=0.4, on_device=residual)
        for call in REACHING
        for dtype in dtypes
        for residual in (False, True)
    ]
    assert sorted(kernels_of(dtypes) - check(calls, variant, "random")) == []


@pytest.mark.parametrize("order", ["reversed", "random"])
def test_the_same_bits_in_every_order(order: str) -> None:
    check([replace(call, dtype=torch.float16, residual=True) for call in REACHING], order=order)


def test_values_that_begin_anywhere() -> None:
    """No vector is read or written of a tensor that does not begin at a multiple of 16 bytes."""
    aligned = (contiguous(30, 64), contiguous(30, 7), Call((2, 16, 3, 9)), Call((2, 3, 3, 9)))
    calls = [
        replace(call, dtype=dtype, residual=True, offsets=offsets)
        for dtype, step in ((torch.float32, 4), (torch.bfloat16, 2), (torch.float16, 8))
        for offsets in ((step, 0, 0), (0, step, 0), (0, 0, step))
        for call in aligned
    ]
    for variant in ("plain", "address"):
        kernels = check(calls, variant)
        assert all(", 1, true>" in kernel for kernel in kernels), kernels


@pytest.mark.parametrize("residual", [False, True])
def test_what_is_dropped_is_a_product(residual: bool) -> None:
    """NaN and infinity times 0 are NaN, also where everything is dropped; the residual's own go through."""
    for call in (contiguous(9, 64), contiguous(9, 33), Call((2, 16, 3, 9))):
        for p in (0.5, 1.0):
            call = replace(call, p=p, residual=residual)
            x, r = call.values()
            x[::7], x[3::11], x[5::13] = torch.inf, -torch.inf, torch.nan
            if r is not None:
                r[1::5], r[2::9] = torch.inf, torch.nan
            truth = expected(call, (x, r))
            assert (truth.isnan() & x.isinf()).any()
            [result] = run(runner("plain"), [make_case(call, (x, r))])
            assert_same(output_of(result, call), truth)


# Sizes that no memory holds: their ends alone are there. Beside each, how many of the last values its last blocks cover
# for certain.
HUGE = {
    "more_than_2_31_values": (contiguous((1 << 31) // 768 + 20, 768), 8000),
    "more_than_2_32_values_of_odd_rows": (contiguous((1 << 32) // 197 + 20, 197), 8000),
    "rows_across_2_32": (contiguous((1 << 32) + 500, 8), 8000),
    "odd_rows_across_2_32": (contiguous((1 << 32) + 600, 7), 8000),
    "rows_beyond_2_33": (contiguous((1 << 33) + 77, 1), 8000),
    "one_long_row": (contiguous(1, (1 << 33) + 5), 8000),
    "channels_across_2_32_rows": (Call((1, 40, 1 << 30, 9)), 3000),
    "single_channels_across_2_32_rows": (Call((3, 33, 1 << 26, 11)), 1000),
    "few_channels_across_2_32_rows": (Call((1, 3, (1 << 31) + 5, 3)), 8000),
    "samples_across_2_32_rows": (Call(((1 << 29) + 9, 8, 1, 5)), 3000),
}


@pytest.mark.parametrize("name", HUGE)
def test_huge_tensors(name: str) -> None:
    huge, covered = HUGE[name]
    for dtype, residual in ((torch.float32, False), (torch.bfloat16, True)):
        call = replace(huge, dtype=dtype, residual=residual, last=(40_000, 3))
        given = call.values()
        [result] = run(runner("plain"), [make_case(call, given)])
        output = output_of(result, call)
        written = output.view(torch.int32 if dtype == torch.float32 else torch.int16) != -1
        assert written[-covered:].all(), f"{int((~written).sum())} are not written"
        assert_same(output[written], expected(call, given)[written])


def test_a_row_with_more_octets_than_the_counter_has_room_for_is_an_error() -> None:
    call = contiguous(1, (1 << 34) + 1, last=(8, 1))
    [result] = run(runner("plain"), [make_case(call, call.values())])
    result.check()
    assert result.reports["status"] != 0
    assert result.kernels == []


def test_of_nothing_nothing_is_launched() -> None:
    call = Call((0, 3, 4, 5))
    [result] = run(runner("plain"), [make_case(call, call.values())])
    assert output_of(result, call).numel() == 0
    assert result.kernels == []
