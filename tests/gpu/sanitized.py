"""A reduced set of calls for compute-sanitizer: every kernel path once or twice, on tensors as small as it allows.

Each call's gradients are taken and its results compared with the reference, so that a tool that changes the timing also
shows a race that it does not report. One process, no pytest: under a tool every start and every kernel costs.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import fastdl
from tests.gpu import record

NOT_AVAILABLE = 40
# Against the reference in the same dtype: wrong indices show, rounding does not.
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 6e-2, torch.float16: 1e-2}


@dataclass(frozen=True)
class Call:
    """One op on one shape; ``act_norm`` is the second order, with a residual.

    For attention the shape is (N, H, L, E), ``channels_last`` slices of one projection, ``act_norm`` a learned bias in
    place of the causal mask.
    """

    op: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    channels_last: bool
    act_norm: bool = False

    @property
    def name(self) -> str:
        layout = "channels_last" if self.channels_last else "nchw"
        size = "x".join(map(str, self.shape))
        return f"{self.op}-{size}-{str(self.dtype)[6:]}-{layout}{'-act_norm' if self.act_norm else ''}"


# Aligned and odd sizes, a group in one block, one that is too large for a block or a cluster, and one position.
SHAPES: dict[str, tuple[tuple[int, ...], ...]] = {
    "group_norm": ((2, 64, 8, 8), (2, 6, 5, 7), (1, 32, 96, 96), (1, 4, 257, 511), (3, 12, 1, 1)),
    "batch_norm": ((4, 32, 8, 8), (3, 6, 5, 7), (16, 8, 64, 64), (9, 12, 1, 1)),
    "attention": ((2, 3, 65, 64), (1, 2, 5, 7), (1, 1, 300, 80), (2, 2, 1, 16), (1, 1, 200, 128)),
}


def calls() -> Iterator[Call]:
    """The calls, the most telling first: each shape in both layouts, dtypes and orders in rotation."""
    dtypes = (torch.bfloat16, torch.float32, torch.float16)
    number = 0
    for op, shapes in SHAPES.items():
        for shape in shapes:
            for channels_last in (False, True):
                yield Call(
                    op, shape, dtypes[number % 3], channels_last, act_norm=op != "group_norm" and number % 4 == 3
                )
                number += 1


def results(call: Call, device: str) -> list[Tensor]:
    """Output, gradients and, for batch_norm, running statistics; the same values for every backend."""
    generator = torch.Generator().manual_seed(0)

    def draw(*size: int, dtype: torch.dtype = call.dtype) -> Tensor:
        return torch.randn(size, generator=generator).to(device, dtype)

    if call.op == "attention":
        return attention_results(call, draw)

    def image() -> Tensor:
        values = draw(*call.shape)
        return values.to(memory_format=torch.channels_last) if call.channels_last else values

    channels = call.shape[1]
    x, residual, grad = image().requires_grad_(), image().requires_grad_(), image()
    weight, bias = (draw(channels, dtype=torch.float32).requires_grad_() for _ in range(2))
    running = [torch.zeros(channels, device=device), torch.ones(channels, device=device)]
    order = "act_norm" if call.act_norm else "norm_act"
    leaves = [x, weight, bias]
    if call.op == "group_norm":
        output = fastdl.ops.group_norm(x, max(1, channels // 4), weight, bias, activation="silu")
    else:
        leaves.append(residual)
        output = fastdl.ops.batch_norm(
            x, *running, weight, bias, True, activation="silu", order=order, residual=residual
        )
    gradients = torch.autograd.grad(output, leaves, grad)
    return [output.detach(), *gradients, *(running if call.op == "batch_norm" else [])]


def attention_results(call: Call, draw: Callable[..., Tensor]) -> list[Tensor]:
    """Output and gradients of query, key and value, and of the bias where there is one."""
    samples, heads, length, features = call.shape
    if call.channels_last:
        slices = draw(samples, length, 3, heads, features).unbind(2)
        leaves = [part.transpose(1, 2).detach().requires_grad_() for part in slices]
    else:
        leaves = [draw(*call.shape).requires_grad_() for _ in range(3)]
    bias = draw(1, heads, length, length, dtype=torch.float32).requires_grad_() if call.act_norm else None
    output = fastdl.ops.scaled_dot_product_attention(*leaves, bias, is_causal=bias is None)
    gradients = torch.autograd.grad(output, leaves if bias is None else [*leaves, bias], draw(*call.shape))
    return [output.detach(), *gradients]


def check(call: Call, backend: str, device: str = "cuda") -> str:
    """What differs from the reference, or nothing."""
    with fastdl.use_backend("reference"):
        expected = results(call, device)
    with fastdl.use_backend(backend):
        found = results(call, device)
    for index, (ours, truth) in enumerate(zip(found, expected, strict=True)):
        scale = float(truth.double().abs().max())
        error = float((ours.double() - truth.double()).abs().max())
        if not error <= TOLERANCE[call.dtype] * max(scale, 1.0):
            return f"result {index} is off by {error:.3g} at scale {scale:.3g}"
    return ""


def run(
    path: Path, backend: str, deadline: float, check: Callable[[Call, str], Any] = check, clock: Any = time.time
) -> int:
    """Every call until the deadline, each recorded as it ends; 1 where a result is wrong."""
    chosen = list(calls())
    record.begin(path)
    record.write(path, "", "collected", len(chosen))
    status = 0
    for call in chosen:
        if clock() > deadline:
            record.write(path, call.name, "skipped", 0.0, "the time is over")
            continue
        began = clock()
        complaint = check(call, backend)
        record.write(path, call.name, "failed" if complaint else "passed", clock() - began, complaint)
        status |= bool(complaint)
    return status


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.gpu.sanitized")
    parser.add_argument("--backend", required=True)
    parser.add_argument("--record", type=Path, required=True)
    parser.add_argument("--deadline", type=float, default=float("inf"))
    options = parser.parse_args()
    if not fastdl.backends()[options.backend].available:
        return NOT_AVAILABLE
    return run(options.record, options.backend, options.deadline)


if __name__ == "__main__":
    sys.exit(main())
