"""Dropout's rows: shapes, layouts, probabilities and values; compared with the definition, choice by choice."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

import fastdl
from fastdl.ops import dropout
from fastdl.reference.dropout import LEVELS, dropped_levels, keep
from tests.support.accuracy import assert_as_right_as_torch
from tests.support.backends import BACKENDS_UNDER_TEST
from tests.support.layouts import LAYOUTS

FLOATING = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class Case:
    """A call: ``values`` makes input and residual from shapes."""

    name: str
    shape: tuple[int, ...]
    layout: str = "contiguous"
    residual: str | None = "contiguous"
    p: float = 0.3
    values: Callable[[tuple[int, ...]], Tensor] = torch.randn
    dtypes: tuple[torch.dtype, ...] = FLOATING


def wide_range(shape: tuple[int, ...]) -> Tensor:
    return torch.randn(shape) * torch.logspace(-6, 4, max(shape[-1], 1))


def not_finite(shape: tuple[int, ...]) -> Tensor:
    values = torch.randn(shape)
    values.view(-1)[::7] = torch.inf
    values.view(-1)[3::11] = -torch.inf
    values.view(-1)[5::13] = torch.nan
    return values


SHAPE_CASES = [
    Case("x".join(map(str, shape)) or "scalar", shape)
    for shape in (
        (), (1,), (7,), (8,), (9,), (127,), (128,), (129,), (1000,), (5, 1), (40, 3), (33, 7), (6, 8), (21, 13),
        (3, 64), (5, 120), (5, 121), (3, 127), (3, 128), (3, 129), (2, 3, 197), (2, 5, 768), (2, 3, 4, 5, 6),
    )
]  # fmt: skip
LAYOUT_CASES = [
    *(Case(f"layout_{layout}", (3, 20, 4, 9), layout, residual) for layout, residual in zip(
        LAYOUTS, ("channels_last", None, "contiguous", "sliced_space", "expanded_batch") * len(LAYOUTS), strict=False
    )),
    *(Case(f"image_{'x'.join(map(str, shape))}", shape, "channels_last", residual) for shape, residual in (
        ((2, 1, 3, 8), "channels_last"), ((2, 2, 3, 7), None), ((1, 16, 2, 8), "channels_last"),
        ((2, 17, 3, 9), "channels_last"), ((1, 33, 1, 17), "contiguous"), ((3, 40, 5, 1), None),
        ((2, 18, 11), "channels_last"), ((2, 19, 2, 3, 10), "channels_last"), ((1, 64, 2, 16), None),
    )),
]  # fmt: skip
PROBABILITY_CASES = [
    Case(f"p_{p}", (9, 50), residual=residual, p=p)
    for p in (2.0**-16, 0.001, 0.5, 0.999, 1 - 2.0**-16, 1.0)
    for residual in (None, "contiguous")
]
VALUE_CASES = [
    Case("wide_range", (12, 33), values=wide_range, dtypes=(torch.float32, torch.float64, torch.bfloat16)),
    Case("large_mean", (12, 33), values=lambda shape: 1e4 + torch.randn(shape)),
    Case("not_finite", (12, 33), values=not_finite),
    Case("not_finite_image", (2, 18, 3, 5), "channels_last", values=not_finite),
]
EMPTY_CASES = [
    Case("empty_x".replace("x", "x".join(map(str, shape))), shape, layout)
    for shape, layout in (((0,), "contiguous"), ((0, 4), "contiguous"), ((4, 0), "contiguous"),
                          ((2, 0, 3, 4), "channels_last"), ((0, 3, 4, 5), "channels_last"))
]  # fmt: skip
CASES = (*SHAPE_CASES, *LAYOUT_CASES, *PROBABILITY_CASES, *VALUE_CASES, *EMPTY_CASES)


def seed_after(manual_seed: int) -> Tensor:
    """The seed that the op draws next after ``torch.manual_seed``."""
    torch.manual_seed(manual_seed)
    return torch.randint(-(1 << 63), (1 << 63) - 1, (1,), dtype=torch.int64)


def factors(shape: tuple[int, ...], seed: Tensor, p: float) -> Tensor:
    """What each value is multiplied by, float64, written out value by value: rows counted over leading dimensions."""
    width = shape[-1] if shape else 1
    places = torch.arange(torch.Size(shape).numel()).reshape(shape)
    rows, columns = places // max(width, 1), places % max(width, 1)
    zero = torch.zeros((), dtype=torch.int64)
    kept = keep(seed, p, zero, zero, rows, columns)
    dropped = dropped_levels(p)
    return kept.double() * (LEVELS / (LEVELS - dropped) if dropped < LEVELS else 0.0)


def check_parity(case: Case, dtype: torch.dtype, backend: str) -> None:
    """Output and gradients beside the definition's, the error held to DESIGN's rule, and the layout of both."""
    device = BACKENDS_UNDER_TEST[backend].device()
    torch.manual_seed(len(case.name))

    def tensor(layout: str) -> Tensor:
        return LAYOUTS[layout](case.shape, case.values).to(device, dtype).requires_grad_()

    x, residual = tensor(case.layout), None if case.residual is None else tensor(case.residual)
    seed = seed_after(11)
    torch.manual_seed(11)
    with fastdl.use_backend(backend):
        output = dropout(x, case.p, residual=residual)
    grad = LAYOUTS[case.residual or "contiguous"](case.shape, torch.randn).to(device, dtype)
    inputs = [x] if residual is None else [x, residual]
    gradients = torch.autograd.grad(output, inputs, grad)

    factor = factors(case.shape, seed, case.p).to(device)
    truth = x.detach().double() * factor + (0 if residual is None else residual.detach().double())
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    baseline = x.detach().to(wide) * factor.to(wide) + (0 if residual is None else residual.detach().to(wide))
    assert_as_right_as_torch("output", output, truth, baseline.to(dtype))
    by_input = (grad.double() * factor, (grad.to(wide) * factor.to(wide)).to(dtype))
    assert_as_right_as_torch("grad of input", gradients[0], *by_input)
    # Where a factor is 0 so is the gradient: a choice that was made another way would show at once.
    dropped = factor == 0
    assert not gradients[0][dropped].any()
    assert bool((gradients[0][~dropped] == 0).sum() <= (grad[~dropped] == 0).sum() + (by_input[1][~dropped] == 0).sum())
    if residual is not None:
        assert torch.equal(gradients[1], grad)
    if backend != "reference":
        assert_layout(case, x, output)


def assert_layout(case: Case, x: Tensor, output: Tensor) -> None:
    if x.ndim in (4, 5) and 0 not in x.shape:
        form = torch.channels_last if x.ndim == 4 else torch.channels_last_3d
        if x.is_contiguous(memory_format=form) and not x.is_contiguous():
            assert output.is_contiguous(memory_format=form), case.name
            return
    if case.layout == "contiguous":
        assert output.is_contiguous(), case.name
