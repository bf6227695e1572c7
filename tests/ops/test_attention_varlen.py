"""Sequences of different lengths, packed: each must give what it gives alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import fastdl
from fastdl.ops import scaled_dot_product_attention, varlen_attention
from tests.support.accuracy import assert_as_right_as_torch
from tests.support.attention import DrawnSeed
from tests.support.backends import BACKENDS_UNDER_TEST, FLOATING, short


@dataclass(frozen=True)
class Packed:
    name: str
    queries: tuple[int, ...]
    keys: tuple[int, ...]
    heads: int = 2
    key_heads: int = 2
    features: int = 16
    value_features: int = 16
    behind: int = 0
    is_causal: bool = False
    window: tuple[int, int] | None = None
    index_dtype: torch.dtype = torch.int32
    packed: bool = False


CASES = (
    Packed("equal", (5, 5, 5), (5, 5, 5)),
    Packed("different", (1, 17, 64, 3), (1, 17, 64, 3), is_causal=True),
    Packed("cross", (3, 20, 7), (40, 1, 33)),
    Packed("empty_sequences", (0, 5, 0, 9, 0), (4, 5, 0, 9, 3)),
    Packed("queries_without_keys", (4, 5), (0, 5)),
    Packed("one", (33,), (33,), window=(5, 2)),
    Packed("grouped", (7, 12), (7, 12), heads=6, key_heads=2, is_causal=True),
    Packed("values", (7, 12), (9, 4), features=24, value_features=40),
    Packed("behind_the_last", (7, 12), (7, 12), behind=6),
    Packed("int64", (7, 12), (7, 12), index_dtype=torch.int64),
    Packed("long", (70, 150, 2), (70, 150, 2), is_causal=True, features=64, value_features=64),
    Packed("packed", (7, 30), (7, 30), packed=True, is_causal=True),
)


def starts(lengths: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.tensor([0, *lengths], dtype=dtype, device=device).cumsum(0).to(dtype)


def make(case: Packed, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(len(case.queries))

    def fill(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(device, dtype)

    queries, keys = sum(case.queries) + case.behind, sum(case.keys) + case.behind
    if case.packed:
        return fill(queries, 3, case.heads, case.features).unbind(1)
    return (
        fill(queries, case.heads, case.features),
        fill(keys, case.key_heads, case.features),
        fill(keys, case.key_heads, case.value_features),
    )


def one_by_one(attend: Any, case: Packed, tensors: tuple[Tensor, ...]) -> Tensor:
    """Each sequence alone by ``attend(query, key, value)`` on (1, H, L, E), the rest zeros."""
    query, key, value = tensors
    parts, first_query, first_key = [], 0, 0
    for length, keys in zip(case.queries, case.keys, strict=True):
        q = query[first_query : first_query + length].transpose(0, 1)[None]
        k, v = (t[first_key : first_key + keys].transpose(0, 1)[None] for t in (key, value))
        parts.append(attend(q, k, v)[0].transpose(0, 1))
        first_query, first_key = first_query + length, first_key + keys
    parts.append(query.new_zeros(case.behind, case.heads, value.shape[2]))
    return torch.cat(parts)


def in_torch(case: Packed) -> Any:
    def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        if not query.shape[2] or not key.shape[2]:
            return query.new_zeros(*query.shape[:3], value.shape[3]) + 0 * (query.sum() + key.sum() + value.sum())
        position = torch.arange(query.shape[2], device=query.device)[:, None]
        column = torch.arange(key.shape[2], device=query.device)
        left, right = case.window or (-1, -1)
        right = 0 if case.is_causal else right
        visible = (position - column <= (left if left >= 0 else 1 << 30)) & (
            column - position <= (right if right >= 0 else 1 << 30)
        )
        mask = None if bool(visible.all()) else visible
        return F.scaled_dot_product_attention(query, key, value, mask, enable_gqa=case.heads != case.key_heads)

    return attend


def solve(function: Any, tensors: tuple[Tensor, ...], grad: Tensor) -> list[Tensor]:
    leaves = [tensor.detach().requires_grad_() for tensor in tensors]
    output = function(*leaves)
    return [output.detach(), *torch.autograd.grad(output, leaves, grad.to(output.dtype))]


@pytest.mark.parametrize("backend", BACKENDS_UNDER_TEST)
@pytest.mark.parametrize("dtype", FLOATING, ids=short)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_each_sequence_is_as_it_is_alone(case: Packed, dtype: torch.dtype, backend: str) -> None:
    device = BACKENDS_UNDER_TEST[backend].device()
    if dtype not in BACKENDS_UNDER_TEST[backend].dtypes():
        pytest.skip(f"{backend} does not serve {dtype}")
    tensors = make(case, dtype, device)
    cu_q, cu_k = (starts(lengths, case.index_dtype, device) for lengths in (case.queries, case.keys))
    grad = torch.randn(tensors[0].shape[0], case.heads, tensors[2].shape[2], device=device, dtype=torch.float64)

    def packed(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return varlen_attention(
            query, key, value, cu_q, cu_k, max(case.queries), max(case.keys),
            is_causal=case.is_causal, window=case.window,
        )  # fmt: skip

    with fastdl.use_backend(backend):
        ours = solve(packed, tensors, grad)
    attend = in_torch(case)
    baseline = solve(lambda *leaves: one_by_one(attend, case, leaves), tensors, grad)
    truth = solve(lambda *leaves: one_by_one(attend, case, leaves), tuple(t.double() for t in tensors), grad)
    for name, found, true, theirs in zip(("output", "query", "key", "value"), ours, truth, baseline, strict=True):
        # One draw of torch's error is a matter of luck, which the factor makes up for.
        assert_as_right_as_torch(f"{case.name}: {name}", found, true, theirs, factor=2.5, units=1.5)


@pytest.mark.parametrize("backend", BACKENDS_UNDER_TEST)
def test_dropout_counts_from_each_sequences_start(backend: str) -> None:
    """A batch of equal lengths drops the same weights packed as it does padded."""
    device = BACKENDS_UNDER_TEST[backend].device()
    query, key, value = (torch.randn(3, 2, 11, 8, device=device) for _ in range(3))
    cu = starts((11, 11, 11), torch.int32, device)
    with fastdl.use_backend(backend), DrawnSeed(77):
        expected = scaled_dot_product_attention(query, key, value, dropout_p=0.4)
        packed = varlen_attention(
            *(t.transpose(1, 2).flatten(0, 1) for t in (query, key, value)), cu, cu, 11, 11, dropout_p=0.4
        )
    torch.testing.assert_close(packed.unflatten(0, (3, 11)).transpose(1, 2), expected)


@pytest.mark.parametrize("backend", BACKENDS_UNDER_TEST)
def test_no_sequence_and_no_token(backend: str) -> None:
    device = BACKENDS_UNDER_TEST[backend].device()
    none = torch.zeros(1, dtype=torch.int32, device=device)
    with fastdl.use_backend(backend):
        some = torch.randn(4, 2, 8, device=device, requires_grad=True)
        output = varlen_attention(some, some, some, none, none, 0, 0)
        assert output.shape == (4, 2, 8)
        assert not output.any()
        output.sum().backward()
        assert some.grad is not None
        assert not some.grad.any()
        empty = torch.randn(0, 2, 8, device=device)
        assert varlen_attention(empty, empty, empty, none, none, 0, 0).shape == (0, 2, 8)
