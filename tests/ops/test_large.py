"""More than 2**31 elements, and offsets beyond 2**31 in small tensors: where an index kept in 32 bits wraps around."""

from __future__ import annotations

import mmap
import os
import sys
import tempfile

import pytest
import torch
from torch import Tensor

import fastdl
from fastdl.ops import batch_norm, dropout, group_norm
from fastdl.reference.dropout import keep
from tests.support.backends import BACKENDS_UNDER_TEST
from tests.support.dropout import seed_after

BEYOND = 2**31 + 4096


def sparse(elements: int, dtype: torch.dtype) -> Tensor:
    """A tensor over a file of holes: address space of its full size, memory only where it is written or read."""
    size = elements * dtype.itemsize
    with tempfile.TemporaryFile() as file:
        file.truncate(size)
        memory = mmap.mmap(file.fileno(), size)
    return torch.frombuffer(memory, dtype=dtype)


@pytest.fixture(params=["cpu"])
def backend(request: pytest.FixtureRequest):
    BACKENDS_UNDER_TEST[request.param].device()
    if sys.maxsize < 2**40:
        pytest.skip("an address space of 64 bits is needed")
    with fastdl.use_backend(request.param):
        yield request.param


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize(
    ("shape", "strides"),
    [
        ((2, 6, 5, 7), (BEYOND, 35, 7, 1)),  # samples far apart
        ((2, 6, 5, 7), (BEYOND, 1, 42, 6)),  # and in channels_last
        ((1, 3, 5, 7), (3 * (BEYOND // 2), BEYOND // 2, 7, 1)),  # channels far apart
        ((1, 3, 1, 3), (9, 1, 9, BEYOND // 2)),  # positions far apart
    ],
    ids=["samples", "samples_channels_last", "channels", "positions_channels_last"],
)
def test_offsets_beyond_31_bits(shape: tuple[int, ...], strides: tuple[int, ...]) -> None:
    last = sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
    assert last >= 2**31
    storage = sparse(last + 1, torch.float32)
    x = storage.as_strided(shape, strides)
    values = torch.randn(shape)
    x.copy_(values)
    gradient_storage = sparse(last + 1, torch.float32)
    grad_output = gradient_storage.as_strided(shape, strides).copy_(torch.randn(shape))
    for apply in (
        lambda t: group_norm(t, 3, activation="silu"),
        lambda t: batch_norm(t, None, None, training=True, activation="silu"),
    ):
        results = []
        for tensor, gradient in ((x, grad_output), (values, grad_output.clone(memory_format=torch.contiguous_format))):
            leaf = tensor.detach().requires_grad_()
            output = apply(leaf)
            results.append((output.detach(), *torch.autograd.grad(output, leaf, gradient)))
        for ours, expected in zip(*results, strict=True):
            torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-6)


def available_memory() -> int:
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("op", ["group_norm", "batch_norm"])
@pytest.mark.parametrize("channels_last", [False, True])
def test_more_than_two_to_the_31_elements(op: str, channels_last: bool) -> None:
    """Statistics and output of a bfloat16 tensor of 2**31 + 6 values, against the same in slices."""
    positions = 2**30 + 3
    if available_memory() < 5 * positions * 2:
        pytest.skip(f"needs {5 * positions * 2 / 2**30:.0f} GiB of free memory")
    shape = (1, positions, 2) if channels_last else (1, 2, positions)
    x = torch.empty(shape, dtype=torch.bfloat16)
    pattern = torch.randn(1 << 20).to(torch.bfloat16)
    flat = x.view(-1)
    for start in range(0, flat.numel(), 1 << 20):
        part = flat[start : start + (1 << 20)]
        part.copy_(pattern[: part.numel()])
    flat[-5:] = torch.tensor([9.0, -7.0, 5.0, 3.0, -8.0]).to(torch.bfloat16)
    if channels_last:
        x = x.transpose(1, 2)
    # The pattern repeats, so that its own moments are those of the whole but for a few values in two thousand million.
    mean, deviation = float(pattern.double().mean()), float(pattern.double().std(correction=0))
    fastdl.cpu_pool(clear=True)
    with torch.no_grad():
        if op == "group_norm":
            y = group_norm(x, 1, activation="relu")
        else:
            y = batch_norm(x, None, None, training=True, activation="relu")
    for part in (slice(0, 4096), slice(2**29, 2**29 + 4096), slice(positions - 4096, positions)):
        values = x[..., part].double()
        if op == "batch_norm" and channels_last:
            means = pattern.double().view(-1, 2).mean(0).view(1, 2, 1)
            deviations = pattern.double().view(-1, 2).std(0, correction=0).view(1, 2, 1)
        else:
            means, deviations = torch.tensor(mean), torch.tensor(deviation)
        expected = torch.relu((values - means) / deviations)
        torch.testing.assert_close(y[..., part].double(), expected, rtol=1e-2, atol=1e-2)
    del y
    fastdl.cpu_pool(clear=True)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("width", [8, 1])
def test_dropout_of_more_rows_than_32_bits_count(width: int) -> None:
    """2**31 + 4096 values, and as many rows as 33 bits count: the choices at the end are those of the last rows."""
    rows = 2**32 + 4096 if width == 1 else (2**31 + 4096) // width
    if available_memory() < 1.3 * rows * width * 2:
        pytest.skip(f"needs {1.3 * rows * width * 2 / 2**30:.0f} GiB of free memory")
    x = sparse(rows * width, torch.bfloat16).view(rows, width)
    x[-4096:] = 1
    seed = seed_after(1)
    torch.manual_seed(1)
    fastdl.cpu_pool(clear=True)
    output = dropout(x, 0.5)
    last = torch.arange(rows - 4096, rows)[:, None]
    kept = keep(seed, 0.5, torch.zeros_like(last), last >> 32, last & 0xFFFFFFFF, torch.arange(width))
    assert torch.equal(output[-4096:].double(), 2 * kept.double())
    assert not output[:4096].any()
    del output
    fastdl.cpu_pool(clear=True)
