"""Heads are taken out of a packed projection, and put together again, without copies in either direction."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import fastdl
from fastdl.nn.heads import merge_heads, packed_buffer, split_heads

N, L, D, H = 3, 5, 12, 4


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_heads_are_views_and_come_together_again() -> None:
    packed = random(N, L, 3 * D)
    parts = split_heads(packed, 3, H)
    for number, part in enumerate(parts):
        assert part.shape == (N, H, L, D // H)
        assert part.untyped_storage().data_ptr() == packed.untyped_storage().data_ptr()
        assert torch.equal(merge_heads(part), packed[..., number * D : (number + 1) * D])


def test_packed_gradients_are_taken_as_they_are() -> None:
    packed = random(N, L, 3 * D).requires_grad_()
    parts = split_heads(packed, 3, H)
    buffer = random(N, L, 3, H, D // H, seed=1)
    gradients = tuple(part.transpose(1, 2) for part in buffer.unbind(2))
    (found,) = torch.autograd.grad(parts, packed, gradients)
    assert torch.equal(found, buffer.view(N, L, 3 * D))
    assert found.data_ptr() == buffer.data_ptr()


@pytest.mark.parametrize("which", ["apart", "another order", "missing", "overlapping"])
def test_other_gradients_are_put_together(which: str) -> None:
    packed = random(N, L, 3 * D).requires_grad_()
    parts = split_heads(packed, 3, H)
    gradients = [random(N, H, L, D // H, seed=number) for number in range(3)]
    if which == "another order":
        buffer = random(N, L, 3, H, D // H, seed=1)
        gradients = [buffer.select(2, number).transpose(1, 2) for number in (1, 0, 2)]
    elif which == "overlapping":
        buffer = random(N, L, 3, H, D // H, seed=1)
        gradients = [buffer.select(2, 0).transpose(1, 2)] * 3
    given = [0, 2] if which == "missing" else [0, 1, 2]
    (found,) = torch.autograd.grad([parts[i] for i in given], packed, [gradients[i] for i in given])
    for number in range(3):
        expected = merge_heads(gradients[number]) if number in given else torch.zeros(N, L, D, dtype=torch.float64)
        assert torch.equal(found[..., number * D : (number + 1) * D], expected)


def test_what_a_packed_buffer_is() -> None:
    buffer = random(N, L, 3, H, D // H)
    q, k, v = (part.transpose(1, 2) for part in buffer.unbind(2))
    together = packed_buffer((q, k, v))
    assert together is not None
    assert torch.equal(together, buffer)
    assert packed_buffer((q, v, k)) is None
    assert packed_buffer((q, k, None)) is None
    assert packed_buffer((q, k, v.clone())) is None
    assert packed_buffer((q[:, :, :3], k[:, :, :3], v[:, :, :3])) is None
    assert packed_buffer((q, k)) is None  # the buffer of two has other strides
    one = random(1, 1, 2, 1, 4)
    assert packed_buffer(tuple(part.transpose(1, 2) for part in one.unbind(2))) is not None


def test_second_derivatives_through_the_heads() -> None:
    packed = random(1, 3, 12).requires_grad_()

    def attend(x: Tensor) -> Tensor:
        q, k, v = split_heads(x, 3, 2)
        with fastdl.use_backend("reference"):
            return merge_heads(fastdl.ops.scaled_dot_product_attention(q, k, v))

    assert torch.autograd.gradgradcheck(attend, packed)
