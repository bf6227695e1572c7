"""What attention accepts and refuses: the same on every backend, with messages that name the argument."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import fastdl
from fastdl.ops import scaled_dot_product_attention, varlen_attention
from tests.support.backends import BACKENDS_UNDER_TEST

Q = torch.zeros(2, 4, 5, 8)


def call(**changes: Any) -> Any:
    arguments = {"query": Q, "key": Q, "value": Q} | changes
    return scaled_dot_product_attention(**arguments)


WRONG: tuple[tuple[dict[str, Any], type[Exception], str], ...] = (
    ({"query": [1.0]}, TypeError, "query must be a torch.Tensor; got list"),
    ({"key": None}, TypeError, "key must be a torch.Tensor; got NoneType"),
    ({"value": Q.int()}, TypeError, "value must be float32, float16, bfloat16 or float64; got torch.int32"),
    ({"key": Q.double()}, TypeError, "key must have the dtype of query, torch.float32; got torch.float64"),
    ({"key": Q[0]}, ValueError, "key must have as many dimensions as query, 4; got shape (4, 5, 8)"),
    (
        {"query": Q[0, 0, 0], "key": Q[0, 0, 0], "value": Q[0, 0, 0]},
        ValueError,
        "query must have at least 2 dimensions",
    ),
    ({"key": Q[..., :7]}, ValueError, "key must have the query's 8 features in its last dimension; got 7"),
    ({"value": Q[:, :, :4]}, ValueError, "value must have the key's length 5; got 4"),
    ({"value": Q.to("meta")}, ValueError, "value must be on the query's device cpu; got meta"),
    ({"key": Q[:, :2], "value": Q[:, :2]}, ValueError, "needs enable_gqa=True"),
    ({"key": Q[:, :3], "value": Q[:, :3], "enable_gqa": True}, ValueError, "query must have a multiple of the key's 3"),
    ({"value": Q[:, :2], "enable_gqa": True}, ValueError, "value must have the key's 4 heads; got 2"),
    ({"key": torch.zeros(3, 4, 5, 8), "value": torch.zeros(3, 4, 5, 8)}, ValueError, "must broadcast"),
    ({"query": Q[..., :0], "key": Q[..., :0]}, ValueError, "query must have 1 to 256 features a head; got 0"),
    ({"value": torch.zeros(2, 4, 5, 257)}, ValueError, "value must have 1 to 256 features a head; got 257"),
    ({"attn_mask": [True]}, TypeError, "attn_mask must be a torch.Tensor or None; got list"),
    ({"attn_mask": torch.zeros(5, 5, dtype=torch.int32)}, TypeError, "attn_mask must be boolean or floating-point"),
    ({"attn_mask": torch.zeros(5, 4)}, ValueError, "attn_mask must broadcast to the weights' shape (2, 4, 5, 5)"),
    ({"attn_mask": torch.zeros(1, 2, 4, 5, 5)}, ValueError, "attn_mask must broadcast"),
    ({"attn_mask": torch.zeros(5, 5, device="meta")}, ValueError, "attn_mask must be on the query's device cpu"),
    ({"dropout_p": 1.5}, ValueError, "dropout_p must be a probability from 0 to 1; got 1.5"),
    ({"dropout_p": float("nan")}, ValueError, "dropout_p must be a probability"),
    ({"dropout_p": "0.1"}, TypeError, "dropout_p must be a number; got str"),
    ({"is_causal": 1}, TypeError, "is_causal must be a bool; got int"),
    ({"scale": float("inf")}, ValueError, "scale must be finite; got inf"),
    ({"scale": Q}, TypeError, "scale must be a number; got Tensor"),
    ({"enable_gqa": None}, TypeError, "enable_gqa must be a bool; got NoneType"),
    ({"softcap": -1.0}, ValueError, "softcap must be positive, or 0 for none; got -1.0"),
    ({"window": 3}, TypeError, "window must be a pair (left, right) or None; got 3"),
    ({"window": (1.0, 2)}, TypeError, "window must hold two ints; got (1.0, 2)"),
    ({"window": (-2, 2)}, ValueError, "window must hold lengths of at least 0, or -1 for no limit; got (-2, 2)"),
    ({"query_offset": 1.0}, TypeError, "query_offset must be an int or a tensor; got float"),
    ({"query_offset": torch.zeros(2)}, TypeError, "query_offset must be an int, or an int32 or int64 tensor"),
    ({"query_offset": torch.zeros(3, dtype=torch.int64)}, ValueError, "query_offset must have shape (2,)"),
)


@pytest.mark.parametrize(("changes", "error", "message"), WRONG, ids=[f"{next(iter(w[0]))}-{w[2][:40]}" for w in WRONG])
@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_wrong_arguments(changes: dict[str, Any], error: type[Exception], message: str, backend: str) -> None:
    with fastdl.use_backend(backend), pytest.raises(error, match=re.escape(message)) as caught:
        call(**changes)
    assert str(caught.value).startswith("scaled_dot_product_attention: ")


T = torch.zeros(6, 2, 8)
CU = torch.tensor([0, 2, 6], dtype=torch.int32)
WRONG_SEQUENCES: tuple[tuple[dict[str, Any], type[Exception], str], ...] = (
    ({"query": Q}, ValueError, "query must have 3 dimensions; got shape (2, 4, 5, 8)"),
    ({"cu_seqlens_q": [0, 6]}, TypeError, "cu_seqlens_q must be a torch.Tensor; got list"),
    ({"cu_seqlens_k": CU.float()}, TypeError, "cu_seqlens_k must be int32 or int64; got torch.float32"),
    ({"cu_seqlens_q": CU[None]}, ValueError, "cu_seqlens_q must have shape (B + 1,); got (1, 3)"),
    ({"cu_seqlens_k": CU[:2]}, ValueError, "cu_seqlens_k must have the shape and dtype of cu_seqlens_q, (3,)"),
    ({"cu_seqlens_k": CU.to("meta")}, ValueError, "cu_seqlens_k must be on the query's device cpu; got meta"),
    ({"max_seqlen_q": 4.0}, TypeError, "max_seqlen_q must be an int; got float"),
    ({"max_seqlen_k": -1}, ValueError, "max_seqlen_k must be at least 0; got -1"),
    ({"key": T[:, :0], "value": T[:, :0]}, ValueError, "query must have a multiple of the key's 0 heads; got 2"),
)


@pytest.mark.parametrize(("changes", "error", "message"), WRONG_SEQUENCES, ids=[w[2][:40] for w in WRONG_SEQUENCES])
def test_wrong_sequences(changes: dict[str, Any], error: type[Exception], message: str) -> None:
    arguments = {
        "query": T, "key": T, "value": T, "cu_seqlens_q": CU, "cu_seqlens_k": CU, "max_seqlen_q": 4, "max_seqlen_k": 4
    } | changes  # fmt: skip
    with pytest.raises(error, match=re.escape(message)) as caught:
        varlen_attention(**arguments)
    assert str(caught.value).startswith("varlen_attention: ")


def test_a_backend_that_cannot_serve_says_so() -> None:
    with fastdl.use_backend("cuda"), pytest.raises(fastdl.BackendError, match="backend 'cuda' serves"):
        call()


SHAPES: dict[str, tuple[tuple[int, ...], ...]] = {
    "two_dimensions": ((5, 8), (7, 8), (7, 3)),
    "three_dimensions": ((3, 5, 8), (3, 7, 8), (3, 7, 3)),
    "five_dimensions": ((2, 3, 4, 5, 8), (2, 3, 4, 7, 8), (2, 3, 4, 7, 3)),
    "six_dimensions": ((2, 1, 3, 2, 5, 8), (2, 1, 3, 2, 7, 8), (2, 1, 3, 2, 7, 3)),
    "broadcast_samples": ((2, 4, 5, 8), (1, 4, 7, 8), (1, 4, 7, 3)),
    "broadcast_heads": ((2, 4, 5, 8), (2, 1, 7, 8), (2, 1, 7, 3)),
    "broadcast_query": ((1, 1, 5, 8), (2, 4, 7, 8), (2, 4, 7, 3)),
    "broadcast_value": ((2, 4, 5, 8), (2, 4, 7, 8), (1, 1, 7, 3)),
    "broadcast_in_five": ((2, 3, 4, 5, 8), (1, 3, 4, 7, 8), (2, 1, 4, 7, 3)),
    "broadcast_in_three": ((3, 5, 8), (1, 7, 8), (1, 7, 3)),
}


@pytest.mark.parametrize("backend", BACKENDS_UNDER_TEST)
@pytest.mark.parametrize("mask", [None, "full", "last_two", "keys"])
@pytest.mark.parametrize("name", SHAPES)
def test_leading_dimensions(name: str, mask: str | None, backend: str) -> None:
    """As torch's own op has them; its mathematical path broadcasts what its kernels do not."""
    device = BACKENDS_UNDER_TEST[backend].device()
    query, key, value = (torch.randn(shape, device=device) for shape in SHAPES[name])
    leading = torch.broadcast_shapes(*(shape[:-2] for shape in SHAPES[name]))
    weights = (*leading, 5, 7)
    bias = None
    if mask is not None:
        bias = torch.randn(*{"full": weights, "last_two": (5, 7), "keys": (*[1] * len(leading), 1, 7)}[mask])
        bias = bias.to(device).requires_grad_()
    leaves = [tensor.requires_grad_() for tensor in (query, key, value)] + ([bias] if bias is not None else [])
    with fastdl.use_backend(backend):
        output, log_sum = scaled_dot_product_attention(query, key, value, bias, return_lse=True)
    wide = [t.expand(*leading, *t.shape[-2:]) for t in (query, key, value)]
    scores = wide[0] @ wide[1].mT / 8**0.5 + (0 if bias is None else bias)
    expected = scores.softmax(-1) @ wide[2]
    assert output.shape == (*leading, 5, 3)
    torch.testing.assert_close(output, expected)
    torch.testing.assert_close(log_sum, scores.logsumexp(-1))
    grad = torch.randn_like(expected)
    for found, right in zip(
        torch.autograd.grad(output, leaves, grad), torch.autograd.grad(expected, leaves, grad), strict=True
    ):
        torch.testing.assert_close(found, right, rtol=1e-4, atol=1e-5)


def test_grouped_heads_of_three_dimensions() -> None:
    query, key = torch.randn(4, 5, 8), torch.randn(2, 6, 8)
    expected = F.scaled_dot_product_attention(query[None], key[None], key[None], enable_gqa=True)[0]
    torch.testing.assert_close(scaled_dot_product_attention(query, key, key, enable_gqa=True), expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_a_mask_of_another_floating_dtype(dtype: torch.dtype) -> None:
    query = torch.randn(1, 2, 5, 8)
    mask = torch.randn(5, 5).to(dtype).requires_grad_()
    output = scaled_dot_product_attention(query, query, query, mask)
    wide = F.scaled_dot_product_attention(*(query.double() for _ in range(3)), mask.double()).float()
    torch.testing.assert_close(output, wide)
    output.sum().backward()
    assert mask.grad is not None
    assert mask.grad.dtype == dtype


def test_torchs_arguments_by_position() -> None:
    query = torch.randn(1, 4, 5, 8)
    key = torch.randn(1, 2, 5, 8)
    ours = scaled_dot_product_attention(query, key, key, None, 0.0, True, 0.3, True)
    theirs = F.scaled_dot_product_attention(query, key, key, None, 0.0, True, scale=0.3, enable_gqa=True)
    torch.testing.assert_close(ours, theirs)


def test_causal_and_mask_together() -> None:
    query = torch.randn(2, 2, 6, 8)
    padding = torch.arange(6) < torch.tensor([6, 3])[:, None]
    ours = scaled_dot_product_attention(query, query, query, padding[:, None, None], is_causal=True)
    both = padding[:, None, None] & torch.ones(6, 6).tril().bool()
    torch.testing.assert_close(ours, F.scaled_dot_product_attention(query, query, query, both))


@pytest.mark.parametrize("backend", BACKENDS_UNDER_TEST)
def test_autocast_runs_it_in_bfloat16_as_torchs(backend: str) -> None:
    device = BACKENDS_UNDER_TEST[backend].device()
    query = torch.randn(2, 2, 6, 8, device=device, requires_grad=True)
    mask = torch.randn(6, 6, device=device, requires_grad=True)
    with fastdl.use_backend(backend), torch.autocast(device.type, torch.bfloat16):
        ours = scaled_dot_product_attention(query, query.bfloat16(), query, mask)
        theirs = F.scaled_dot_product_attention(query, query, query, mask)
        assert ours.dtype == theirs.dtype == torch.bfloat16
        if backend in ("reference", "cpu"):  # the others have no float64
            double = scaled_dot_product_attention(*(query.double() for _ in range(3)))
            assert double.dtype == torch.float64
    torch.testing.assert_close(ours, theirs, rtol=0.05, atol=0.02)
    for gradient in torch.autograd.grad(ours.float().square().sum(), [query, mask]):
        assert gradient.dtype == torch.float32


def as_heads(packed: Tensor, heads: int) -> tuple[Tensor, ...]:
    return tuple(part.transpose(1, 2) for part in packed.unflatten(-1, (3, heads, -1)).unbind(2))
