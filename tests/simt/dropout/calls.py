"""A call of the CUDA dropout on the host, and what the definition says of it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastdl.reference.dropout import dropped_levels, keep, scale_of_kept
from tests.simt.harness import CSRC, HERE, Case, Input, Output, Result, Runner, build
from tests.simt.norms.calls import DTYPES, STORED, as_tensor, span_of

WORD = 0xFFFFFFFF


def runner(variant: str) -> Runner:
    """The kernels and the driver of this folder as a program that runs cases."""
    return build([CSRC / "cuda" / "dropout.cu", HERE / "dropout" / "dropout.cpp"], variant)


@dataclass(frozen=True)
class Call:
    """A tensor (samples, channels, lines, width), channels innermost in memory, and how it is dropped from.

    ``last`` is how many of the values there are, those at the end of memory, and of how many of the last blocks they
    may be touched; None is all. ``offsets`` are the bytes by which input, residual and output are not aligned.
    """

    sizes: tuple[int, int, int, int]
    dtype: torch.dtype = torch.float32
    residual: bool = False
    p: float = 0.3
    seed: int = 0x123456789ABCDEF
    on_device: bool = False
    last: tuple[int, int] | None = None
    offsets: tuple[int, int, int] = (0, 0, 0)

    @property
    def count(self) -> int:
        """How many values the arrays hold."""
        return math.prod(self.sizes) if self.last is None else self.last[0]

    @property
    def missing(self) -> int:
        """How many values of the tensor lie before the arrays."""
        return math.prod(self.sizes) - self.count

    def values(self) -> tuple[Tensor, Tensor | None]:
        """Input and residual, flat, as they lie in memory; the same whenever they are asked for."""
        generator = torch.Generator().manual_seed(self.count)
        x, r = torch.randn(2, self.count, generator=generator).to(self.dtype)
        return x, r if self.residual else None


def contiguous(rows: int, width: int, **given: Any) -> Call:
    """Of rows that follow one another, as the bindings describe them."""
    return Call((rows, 1, 1, width), **given)


def make_case(call: Call, values: tuple[Tensor, Tensor | None]) -> Case:
    x, r = values
    of_input, of_residual, of_output = call.offsets
    arrays = {
        "input": Input(span_of(x), of_input),
        "residual": None if r is None else Input(span_of(r), of_residual),
        "output": Output((call.count,), STORED[call.dtype], of_output),
        "seed_on_device": np.array([call.seed]) if call.on_device else None,
    }
    scalars = dict(zip(("samples", "channels", "lines", "width"), call.sizes, strict=True)) | {
        "dtype": DTYPES.index(call.dtype),
        # What the kernel must not look at where the seed is on the device.
        "seed": 77 if call.on_device else call.seed,
        "dropped": dropped_levels(call.p),
        "missing_bytes": call.missing * x.element_size(),
        "last_blocks": 0 if call.last is None else call.last[1],
    }
    return Case("dropout", arrays, scalars)


def output_of(result: Result, call: Call) -> Tensor:
    """Flat, as it lies in memory; raises if the run failed."""
    result.check()
    assert result.reports["status"] == 0, f"{call}: status {result.reports['status']}"
    return as_tensor(result.arrays["output"], torch.empty(call.count, dtype=call.dtype))


def expected(call: Call, values: tuple[Tensor, Tensor | None]) -> Tensor:
    """By the definition's choices, rounded as the kernels round: a float32 product and sum in one, and then the dtype.

    In float64 the product is exact, and the sum as good as that.
    """
    _, channels, lines, width = call.sizes
    at = torch.arange(call.missing, call.missing + call.count)
    channel, column = at % channels, at // channels % width
    line, sample = at // (channels * width) % lines, at // (channels * width * lines)
    row = (sample * channels + channel) * lines + line
    kept = keep(torch.tensor(call.seed), call.p, torch.zeros_like(row), row >> 32, row & WORD, column)
    scale = torch.tensor(scale_of_kept(call.p)).float().double()
    x, r = values
    wide = x.double() * (kept.double() * scale)
    return (wide if r is None else wide + r.double()).float().to(call.dtype)
