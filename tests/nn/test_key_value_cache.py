"""Decoding with a cache of keys and values gives what attention over the whole sequence gives."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fastdl.nn import KeyValueCache, MultiheadAttention

pytestmark = pytest.mark.usefixtures("one_thread", "backend")

N, D, H = 3, 12, 4


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def attention() -> MultiheadAttention:
    """Every parameter random: torch starts biases at zero, where a forgotten one would go unseen."""
    module = MultiheadAttention(D, H, batch_first=True).double()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for value in module.parameters():
            value.copy_(torch.randn(value.shape, generator=generator) / math.sqrt(D))
    return module


@pytest.mark.parametrize("sizes", [[1] * 9, [4, 1, 1, 3], [9]])
@pytest.mark.parametrize("need_weights", [True, False])
def test_token_by_token_is_causal_attention(sizes: list[int], need_weights: bool) -> None:
    ours = attention()
    x = random(N, 9, D)
    expected, expected_weights = ours(x, x, x, is_causal=True, need_weights=need_weights)
    cache = KeyValueCache(capacity=2)  # so that it has to grow
    outputs = []
    with torch.no_grad():
        for new in x.split(sizes, dim=1):
            output, weights = ours(new, new, new, cache=cache, need_weights=need_weights)
            outputs.append(output)
    torch.testing.assert_close(torch.cat(outputs, 1), expected)
    assert cache.lengths == [9] * N
    if need_weights:
        torch.testing.assert_close(weights, expected_weights[:, -sizes[-1] :])


def test_rows_of_different_lengths() -> None:
    """Prompts of 4, 2 and 3 tokens, padded to 4, and then five tokens each."""
    ours = attention()
    prompts, later = [4, 2, 3], 5
    x = [random(length + later, D, seed=length) for length in prompts]
    first = torch.full((N, 4, D), 1e3, dtype=torch.float64)
    for row, length in enumerate(prompts):
        first[row, :length] = x[row][:length]
    cache = KeyValueCache(capacity=3)
    found: list[list[Tensor]] = [[] for _ in prompts]
    with torch.no_grad():
        output, _ = ours(first, first, first, cache=cache, counts=prompts, need_weights=False)
        for row, length in enumerate(prompts):
            found[row].append(output[row, :length])
        assert cache.lengths == prompts
        for step in range(later):
            new = torch.stack([x[row][length + step] for row, length in enumerate(prompts)]).unsqueeze(1)
            output, _ = ours(new, new, new, cache=cache, need_weights=False)
            for row in range(N):
                found[row].append(output[row])
    for row, sequence in enumerate(x):
        one = sequence.unsqueeze(0)
        expected, _ = ours(one, one, one, is_causal=True, need_weights=False)
        torch.testing.assert_close(torch.cat(found[row]), expected[0])


def test_padding_at_the_left_is_hidden_by_a_mask() -> None:
    ours = attention()
    x = random(1, 6, D)
    padded = F.pad(x, (0, 0, 2, 0), value=50.0)
    cache = KeyValueCache()
    with torch.no_grad():
        outputs = []
        for stop in range(1, 9):
            new = padded[:, stop - 1 : stop]
            hidden = torch.arange(stop).unsqueeze(0) < 2
            outputs.append(ours(new, new, new, cache=cache, key_padding_mask=hidden, need_weights=False)[0])
    expected, _ = ours(x, x, x, is_causal=True, need_weights=False)
    torch.testing.assert_close(torch.cat(outputs[2:], 1), expected)


def test_rows_are_selected_and_forgotten() -> None:
    ours = attention()
    x = random(N, 6, D)
    cache = KeyValueCache()
    rows = [2, 0, 2]
    with torch.no_grad():
        ours(x[:, :5], x[:, :5], x[:, :5], cache=cache, counts=[5, 5, 5])
        cache.select(torch.tensor(rows))
        new = x[rows, 5:]
        output, _ = ours(new, new, new, cache=cache, need_weights=False)
        chosen = x[rows]
        expected, _ = ours(chosen, chosen, chosen, is_causal=True, need_weights=False)
        torch.testing.assert_close(output, expected[:, 5:])
        cache.clear()
        assert (len(cache), cache.lengths) == (0, [0, 0, 0])
        again, _ = ours(chosen, chosen, chosen, cache=cache, need_weights=False)
        torch.testing.assert_close(again, expected)


def test_a_cache_refuses_what_it_cannot_hold() -> None:
    cache = KeyValueCache()
    key = random(2, H, 3, 4)
    with pytest.raises(ValueError, match=r"torch\.no_grad"):
        cache.append(key.clone().requires_grad_(), key)
    cache.append(key, key)
    with pytest.raises(ValueError, match="key must have 2 rows, 4 heads and 4 features"):
        cache.append(random(3, H, 3, 4), random(3, H, 3, 4))
    with pytest.raises(ValueError, match=r"key must be torch\.float64"):
        cache.append(key.float(), key.float())
    with pytest.raises(ValueError, match="counts must hold 2 numbers from 0 to 3"):
        cache.append(key, key, [1, 4])
    with pytest.raises(ValueError, match="capacity must be at least 1"):
        KeyValueCache(0)
