"""First and second derivatives of attention against finite differences, and the transforms of torch.func."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

import fastdl
from fastdl.ops import scaled_dot_product_attention, varlen_attention
from tests.support.backends import BACKENDS_UNDER_TEST

DOUBLE = [name for name, backend in BACKENDS_UNDER_TEST.items() if torch.float64 in backend.dtypes()]

OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "causal": {"is_causal": True},
    "window_with_offset": {"window": (2, 1), "query_offset": 1},
    "sees_nothing_first": {"is_causal": True, "query_offset": -2},
    "softcap": {"softcap": 1.5},
    "scale": {"scale": -0.4},
}


def tensors(*shapes: tuple[int, ...]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(len(shapes))
    return [torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_() for shape in shapes]


SHAPES = ((1, 2, 4, 3), (1, 2, 5, 3), (1, 2, 5, 2))


def both_orders(function: Any, leaves: list[Tensor]) -> None:
    gradcheck(function, leaves)
    gradgradcheck(function, leaves)


@pytest.mark.parametrize("backend", DOUBLE)
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_gradients(options: dict[str, Any], backend: str) -> None:
    BACKENDS_UNDER_TEST[backend].device()
    with fastdl.use_backend(backend):
        both_orders(lambda q, k, v: scaled_dot_product_attention(q, k, v, **options), tensors(*SHAPES))


@pytest.mark.parametrize("backend", DOUBLE)
@pytest.mark.parametrize("shape", [(4, 5), (1, 5), (2, 4, 5), (1, 2, 4, 1), (1, 1, 1, 1)], ids=str)
def test_gradients_with_a_bias(shape: tuple[int, ...], backend: str) -> None:
    BACKENDS_UNDER_TEST[backend].device()
    with fastdl.use_backend(backend):
        both_orders(scaled_dot_product_attention, tensors(*SHAPES, shape))


@pytest.mark.parametrize("backend", DOUBLE)
def test_gradients_through_the_log_sum(backend: str) -> None:
    BACKENDS_UNDER_TEST[backend].device()

    def both(q: Tensor, k: Tensor, v: Tensor, b: Tensor) -> Any:
        return scaled_dot_product_attention(q, k, v, b, softcap=2.0, return_lse=True)

    with fastdl.use_backend(backend):
        both_orders(both, tensors(*SHAPES, (4, 5)))
        both_orders(lambda *leaves: both(*leaves)[1], tensors(*SHAPES, (4, 5)))


@pytest.mark.parametrize("backend", DOUBLE)
def test_gradients_of_grouped_heads(backend: str) -> None:
    BACKENDS_UNDER_TEST[backend].device()
    leaves = tensors((1, 4, 3, 2), (1, 2, 4, 2), (1, 2, 4, 2))
    with fastdl.use_backend(backend):
        both_orders(lambda q, k, v: scaled_dot_product_attention(q, k, v, enable_gqa=True), leaves)


@pytest.mark.parametrize("backend", DOUBLE)
def test_gradients_with_dropout(backend: str) -> None:
    BACKENDS_UNDER_TEST[backend].device()

    def seeded(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        torch.manual_seed(3)
        output: Tensor = scaled_dot_product_attention(q, k, v, dropout_p=0.4)
        return output

    with fastdl.use_backend(backend):
        both_orders(seeded, tensors(*SHAPES))


@pytest.mark.parametrize("backend", DOUBLE)
def test_gradients_of_packed_sequences(backend: str) -> None:
    BACKENDS_UNDER_TEST[backend].device()
    cu_q, cu_k = torch.tensor([0, 1, 1, 4], dtype=torch.int32), torch.tensor([0, 2, 3, 5], dtype=torch.int32)
    leaves = tensors((5, 2, 3), (5, 2, 3), (5, 2, 2))
    with fastdl.use_backend(backend):
        both_orders(lambda q, k, v: varlen_attention(q, k, v, cu_q, cu_k, 3, 2, is_causal=True), leaves)


@pytest.mark.parametrize("backend", DOUBLE)
def test_gradients_of_one_projection(backend: str) -> None:
    """All three slices are of one leaf."""
    BACKENDS_UNDER_TEST[backend].device()

    def attend(projection: Tensor) -> Tensor:
        q, k, v = projection.unflatten(-1, (3, 2, 2)).transpose(1, 3).unbind(2)
        output: Tensor = scaled_dot_product_attention(q, k, v)
        return output

    with fastdl.use_backend(backend):
        both_orders(attend, tensors((1, 4, 12)))


# A deprecated thing that torch 2.13's forward mode itself uses.
@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
@pytest.mark.parametrize("backend", DOUBLE)
def test_transforms(backend: str) -> None:
    BACKENDS_UNDER_TEST[backend].device()
    query, key, value = (t.detach() for t in tensors(*SHAPES))

    def loss(query: Tensor) -> Tensor:
        return scaled_dot_product_attention(query, key, value, is_causal=True).square().sum()

    with fastdl.use_backend(backend):
        found = torch.func.grad(loss)(query)
        _, forward_mode = torch.func.jvp(loss, (query,), (torch.ones_like(query),))
        hessian = torch.func.hessian(loss)(query)
        per_sample = torch.func.vmap(torch.func.grad(loss))(torch.stack([query, 2 * query]))
    with fastdl.use_backend("reference"):
        leaf = query.clone().requires_grad_()
        (expected,) = torch.autograd.grad(loss(leaf), leaf)
        doubled = (2 * query).requires_grad_()
        (expected_doubled,) = torch.autograd.grad(loss(doubled), doubled)
        expected_hessian = torch.autograd.functional.hessian(loss, query)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(forward_mode, expected.sum())
    torch.testing.assert_close(hessian, expected_hessian)
    torch.testing.assert_close(per_sample, torch.stack([expected, expected_doubled]))
