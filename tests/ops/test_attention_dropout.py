"""Dropout: the stream is Philox's, it honours torch's generator, and backward drops what forward dropped."""

from __future__ import annotations

import pytest
import torch

import fastdl
from fastdl.ops import scaled_dot_product_attention
from fastdl.reference.dropout import keep, philox
from tests.support.backends import BACKENDS_UNDER_TEST


@pytest.mark.parametrize(
    ("counter", "key", "words"),
    # The known answers that the paper's authors publish with their code (Random123, kat_vectors).
    [
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_known_answers(counter: tuple[int, ...], key: tuple[int, ...], words: tuple[int, ...]) -> None:
    tensors = [torch.tensor([word]) for word in (*counter, *key)]
    found = philox(tuple(tensors[:4]), tuple(tensors[4:]))  # type: ignore[arg-type]
    assert tuple(int(word) for word in found) == words


@pytest.mark.parametrize("probability", [0.0, 0.1, 0.5, 0.9, 1.0])
def test_the_share_of_what_is_kept(probability: float) -> None:
    rows, columns = torch.arange(400)[:, None], torch.arange(500)[None]
    zero = torch.zeros((), dtype=torch.int64)
    kept = keep(torch.tensor([3]), probability, zero, zero, rows, columns).double()
    deviation = (probability * (1 - probability) / kept.numel()) ** 0.5
    assert abs(float(kept.mean()) - (1 - probability)) <= 5 * deviation + 1e-5
    neighbours = (kept[:, 1:] - kept.mean()) * (kept[:, :-1] - kept.mean())
    assert abs(float(neighbours.mean())) <= 5 * probability * (1 - probability) / kept.numel() ** 0.5 + 1e-9


@pytest.mark.parametrize("backend", BACKENDS_UNDER_TEST)
def test_every_head_sample_row_and_column_has_its_own_choice(backend: str) -> None:
    """Values of one-hot columns read the weights out: which are dropped is then plain to see."""
    device = BACKENDS_UNDER_TEST[backend].device()
    samples, heads, length, keys = 2, 3, 20, 50
    query = torch.zeros(samples, heads, length, 4, device=device)
    key = torch.zeros(samples, heads, keys, 4, device=device)
    value = torch.eye(keys, device=device).expand(samples, heads, keys, keys)
    with fastdl.use_backend(backend):
        torch.manual_seed(5)
        weights = scaled_dot_product_attention(query, key, value, dropout_p=0.5)
        torch.manual_seed(5)
        again = scaled_dot_product_attention(query, key, value, dropout_p=0.5)
        other = scaled_dot_product_attention(query, key, value, dropout_p=0.5)
    assert torch.equal(weights, again)
    assert not torch.equal(weights, other)
    kept = weights > 0
    torch.testing.assert_close(weights[kept], torch.full_like(weights[kept], 2 / keys))
    for dimension in range(4):
        first, second = kept.select(dimension, 0), kept.select(dimension, 1)
        assert 0.2 < float((first != second).double().mean()) < 0.8
    torch.manual_seed(5)
    seed = torch.randint(-(1 << 63), (1 << 63) - 1, (1,), dtype=torch.int64)
    indices = [torch.arange(n).view([-1] + [1] * (3 - i)) for i, n in enumerate((samples, heads, length, keys))]
    assert torch.equal(kept.cpu(), keep(seed, 0.5, *indices))


@pytest.mark.parametrize("backend", BACKENDS_UNDER_TEST)
def test_backward_drops_what_forward_dropped(backend: str) -> None:
    """The gradient of a value is the column's sum of weights that were kept: equal to what forward shows."""
    device = BACKENDS_UNDER_TEST[backend].device()
    query, key = torch.randn(2, 1, 2, 30, 8, device=device)
    value = torch.eye(30, device=device).expand(1, 2, 30, 30).clone().requires_grad_()
    with fastdl.use_backend(backend):
        weights = scaled_dot_product_attention(query, key, value, dropout_p=0.5)
        probe = torch.randn_like(weights)
        (gradient,) = torch.autograd.grad(weights, value, probe)
    torch.testing.assert_close(gradient, weights.detach().mT @ probe)


def test_no_dropout_draws_no_number() -> None:
    query = torch.randn(1, 1, 4, 4)
    torch.manual_seed(1)
    scaled_dot_product_attention(query, query, query)
    after = torch.rand(1)
    torch.manual_seed(1)
    assert torch.equal(after, torch.rand(1))


def test_checkpointing_recomputes_the_same_choices() -> None:
    from torch.utils.checkpoint import checkpoint

    query = torch.randn(1, 2, 20, 8, requires_grad=True)

    def attend(query: torch.Tensor) -> torch.Tensor:
        return scaled_dot_product_attention(query, query, query, dropout_p=0.5).square()

    torch.manual_seed(2)
    (expected,) = torch.autograd.grad(attend(query).sum(), query)
    torch.manual_seed(2)
    (found,) = torch.autograd.grad(checkpoint(attend, query, use_reentrant=False).sum(), query)
    assert torch.equal(found, expected)
