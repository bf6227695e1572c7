"""layer_norm and rms_norm on the CPU where a pass fills the caches and its results are stored past them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from fastdl.ops import layer_norm, rms_norm
from tests.support.backends import BACKENDS_UNDER_TEST

# As csrc/cpu/row_norm_rows.h has it.
SIZE = Path("/sys/devices/system/cpu/cpu0/cache/index3/size")
LAST_LEVEL_CACHE = int(SIZE.read_text().strip().rstrip("K")) << 10 if SIZE.exists() else 16 << 20


def results(norm: str, x: Tensor, residual: Tensor, grads: tuple[Tensor, Tensor]) -> list[Tensor]:
    """Output and sum, alone and of a sum, and the gradients of what was normalised."""
    width = x.shape[-1]
    weight = torch.linspace(0.5, 1.5, width)
    found: list[Tensor] = []
    for other in (None, residual):
        leaf = x.detach().requires_grad_()
        outputs = (
            layer_norm(leaf, (width,), weight, weight - 1, residual=other)
            if norm == "layer_norm"
            else rms_norm(leaf, (width,), weight, residual=other)
        )
        given = outputs if isinstance(outputs, tuple) else (outputs,)
        found += [t.detach() for t in given]
        found += torch.autograd.grad(given, leaf, grads[: len(given)])
    return found


@pytest.mark.skipif(LAST_LEVEL_CACHE > 128 << 20, reason="a dozen tensors of half the last cache would take gigabytes")
# Rows of whole vectors, rows that begin anywhere, and rows too long for prefetching.
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("width", [768, 1025, 50257])
@pytest.mark.parametrize("norm", ["layer_norm", "rms_norm"])
def test_the_cpu_stores_past_its_caches_what_it_stores_into_them(norm: str, width: int, dtype: torch.dtype) -> None:
    BACKENDS_UNDER_TEST["cpu"].device()
    # The pass with the fewest tensors goes through two.
    rows = -(-LAST_LEVEL_CACHE // 2 // (width * dtype.itemsize)) + 3
    x, residual, *grads = (torch.randn(rows, width, dtype=dtype) for _ in range(4))
    whole = results(norm, x, residual, (grads[0], grads[1]))
    few = max(1, LAST_LEVEL_CACHE // 16 // (width * dtype.itemsize))
    parts = []
    for first in range(0, rows, few):
        part, other, *given = (t[first : first + few].contiguous() for t in (x, residual, *grads))
        parts.append(results(norm, part, other, (given[0], given[1])))
    for one, of_parts in zip(whole, zip(*parts, strict=True), strict=True):
        assert torch.equal(one, torch.cat(of_parts))
