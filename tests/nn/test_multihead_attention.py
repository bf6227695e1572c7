"""fastdl.nn.MultiheadAttention stands in for torch.nn's: weights, arguments, outputs, gradients, and what it copies."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from fastdl.nn import KeyValueCache, MultiheadAttention

pytestmark = pytest.mark.usefixtures("one_thread", "backend")

N, L, S, D, H = 3, 5, 7, 12, 4


def filled(module: torch.nn.Module) -> torch.nn.Module:
    """Every parameter random: torch starts biases at zero, where a forgotten one would go unseen."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for value in module.parameters():
            value.copy_(torch.randn(value.shape, generator=generator) / math.sqrt(D))
    return module


def pair(dtype: torch.dtype = torch.float64, **options: Any) -> tuple[MultiheadAttention, torch.nn.MultiheadAttention]:
    theirs = filled(torch.nn.MultiheadAttention(D, H, **options).to(dtype))
    ours = MultiheadAttention(D, H, **options).to(dtype)
    assert ours.load_state_dict(theirs.state_dict()) == torch.nn.modules.module._IncompatibleKeys([], [])
    return ours, theirs


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def inputs(same: str, *, kdim: int = D, vdim: int = D) -> tuple[Tensor, Tensor, Tensor]:
    """Batch first. ``same`` tells which of query, key and value are one tensor."""
    query = random(N, L, D)
    if same == "all":
        return query, query, query
    key = random(N, S, kdim, seed=1)
    return query, key, key if same == "key and value" else random(N, S, vdim, seed=2)


def results(module: torch.nn.Module, tensors: tuple[Tensor, ...], **arguments: Any) -> list[Tensor | None]:
    """Output, weights, and the gradients of every input and parameter."""
    made: dict[int, Tensor] = {}
    leaves = [made.setdefault(id(tensor), tensor.clone().requires_grad_()) for tensor in tensors]
    output, weights = module(*leaves, **arguments)
    loss = output.sin().sum() if weights is None else output.sin().sum() + weights.square().sum()
    module.zero_grad()
    loss.backward()
    return [output, weights, *(leaf.grad for leaf in made.values()), *(p.grad for p in module.parameters())]


def assert_same(found: list[Tensor | None], expected: list[Tensor | None]) -> None:
    for mine, other in zip(found, expected, strict=True):
        assert (mine is None) == (other is None)
        if mine is not None and other is not None:
            torch.testing.assert_close(mine, other)


def hides(*shape: int) -> Tensor:
    """True where a query must not see a key; the first key is seen by all, since torch gives NaN where none is."""
    return (random(*shape, seed=3) > 0.8) & (torch.arange(shape[-1]) > 0)


MASKS: dict[str, Any] = {
    "none": lambda keys: None,
    "boolean": lambda keys: hides(L, keys),
    "additive": lambda keys: random(L, keys, seed=3),
    "boolean of each head": lambda keys: hides(N * H, L, keys),
    "additive of each head": lambda keys: random(N * H, L, keys, seed=3),
}
PADDINGS: dict[str, Any] = {
    "none": lambda keys: None,
    "boolean": lambda keys: torch.arange(keys) >= torch.tensor([keys, keys - 2, keys - 4])[:, None],
    "additive": lambda keys: random(N, keys, seed=4),
}


@pytest.mark.parametrize("same", ["all", "key and value", "none"])
@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("need_weights", [True, False])
@pytest.mark.parametrize("options", [{}, {"bias": False}, {"add_bias_kv": True}, {"add_zero_attn": True}], ids=str)
def test_outputs_weights_and_gradients_are_torchs(
    same: str, batch_first: bool, need_weights: bool, options: dict[str, bool]
) -> None:
    ours, theirs = pair(batch_first=batch_first, **options)
    tensors = inputs(same)
    if not batch_first:
        turned = {id(tensor): tensor.transpose(0, 1) for tensor in tensors}
        tensors = tuple(turned[id(tensor)] for tensor in tensors)
    found = results(ours, tensors, need_weights=need_weights)
    assert_same(found, results(theirs, tensors, need_weights=need_weights))


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("need_weights", [True, False])
@pytest.mark.parametrize("options", [{}, {"add_bias_kv": True, "add_zero_attn": True}], ids=["plain", "extra keys"])
@pytest.mark.filterwarnings("ignore:Support for mismatched key_padding_mask and attn_mask")
def test_masks_are_torchs(mask: str, padding: str, need_weights: bool, options: dict[str, bool]) -> None:
    ours, theirs = pair(batch_first=True, **options)
    tensors = inputs("key and value")
    arguments = {
        "attn_mask": MASKS[mask](S),
        "key_padding_mask": PADDINGS[padding](S),
        "need_weights": need_weights,
        "average_attn_weights": False,
    }
    assert_same(results(ours, tensors, **arguments), results(theirs, tensors, **arguments))


@pytest.mark.parametrize("need_weights", [True, False])
@pytest.mark.parametrize("extra_keys", [True, False])
@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("with_mask", [True, False])
@pytest.mark.filterwarnings("ignore:Support for mismatched key_padding_mask and attn_mask")
def test_causal_is_torchs_with_its_mask(need_weights: bool, extra_keys: bool, padding: str, with_mask: bool) -> None:
    ours, theirs = pair(batch_first=True, add_bias_kv=extra_keys)
    causal = torch.ones(L, L, dtype=torch.bool).triu(1)
    arguments: dict[str, Any] = {"key_padding_mask": PADDINGS[padding](L), "need_weights": need_weights}
    mask = {"attn_mask": causal} if with_mask else {}
    found = results(ours, inputs("all"), is_causal=True, **mask, **arguments)
    # Without torch's is_causal, which is only a hint, and which hides its extra keys where it is followed.
    assert_same(found, results(theirs, inputs("all"), attn_mask=causal, **arguments))


def test_another_width_of_keys_and_values() -> None:
    ours, theirs = pair(batch_first=True, kdim=6, vdim=10)
    tensors = inputs("none", kdim=6, vdim=10)
    for need_weights in (True, False):
        found = results(ours, tensors, need_weights=need_weights)
        assert_same(found, results(theirs, tensors, need_weights=need_weights))


@pytest.mark.parametrize("need_weights", [True, False])
@pytest.mark.parametrize("average", [True, False])
@pytest.mark.parametrize("heads_of_mask", [None, 1, H])
def test_a_single_sample(need_weights: bool, average: bool, heads_of_mask: int | None) -> None:
    ours, theirs = pair()
    query, key = random(L, D), random(S, D, seed=1)
    mask = None if heads_of_mask is None else hides(*([H] if heads_of_mask > 1 else []), L, S)
    arguments = {
        "need_weights": need_weights,
        "average_attn_weights": average,
        "attn_mask": mask,
        "key_padding_mask": torch.arange(S) > 4,
    }
    tensors = (query, key, key)
    assert_same(results(ours, tensors, **arguments), results(theirs, tensors, **arguments))


def test_a_query_that_sees_nothing_attends_to_nothing() -> None:
    ours, _ = pair(batch_first=True)
    hidden = torch.zeros(N, L, dtype=torch.bool)
    hidden[1] = True
    x = random(N, L, D)
    for need_weights in (True, False):
        output, weights = ours(x, x, x, key_padding_mask=hidden, need_weights=need_weights)
        torch.testing.assert_close(output[1], ours.out_proj.bias.expand(L, D))
        assert weights is None or weights[1].eq(0).all()


def test_an_additive_mask_has_a_gradient() -> None:
    ours, theirs = pair(batch_first=True)
    x = random(N, L, D)
    gradients = []
    for module in (ours, theirs):
        mask = random(L, L, seed=5).requires_grad_()
        module(x, x, x, attn_mask=mask, need_weights=False)[0].sin().sum().backward()
        gradients.append(mask.grad)
    torch.testing.assert_close(*gradients)


def test_dropout_is_for_training() -> None:
    ours, theirs = pair(batch_first=True, dropout=0.5)
    x = random(N, L, D)
    for need_weights in (True, False):
        assert not torch.equal(*(ours(x, x, x, need_weights=need_weights)[0] for _ in range(2)))
    weights = ours(x, x, x, average_attn_weights=False)[1]
    assert 0.3 < weights.eq(0).double().mean() < 0.7  # 0.5 ± 4 deviations of 300 draws are 0.38 to 0.62
    for module in (ours.eval(), theirs.eval()):
        module.requires_grad_()
    assert_same(results(ours, (x, x, x)), results(theirs, (x, x, x)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_lower_precision_is_as_exact_as_torchs(dtype: torch.dtype) -> None:
    ours, theirs = pair(dtype, batch_first=True)
    exact = copy.deepcopy(theirs).double()
    x = random(N, L, D).to(dtype)
    truth = exact(*[x.double()] * 3, need_weights=False)[0]
    errors = [(module(x, x, x, need_weights=False)[0].double() - truth).abs().max().item() for module in (ours, theirs)]
    assert errors[0] <= 1.5 * errors[1] + torch.finfo(dtype).eps * truth.abs().max().item()


def test_autocast() -> None:
    ours, theirs = pair(torch.float32, batch_first=True)
    x = random(N, L, D).float()
    with torch.autocast("cpu", torch.bfloat16):
        found, expected = (module(x, x, x, need_weights=False)[0] for module in (ours, theirs))
    assert found.dtype == expected.dtype == torch.bfloat16
    torch.testing.assert_close(found, expected, atol=0.02, rtol=0.02)  # two bfloat16 roundings of values near 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (({"query": random(L)}), "query must have 2 or 3 dimensions"),
        (({"query": random(N, L, 8)}), "query must have 12 features"),
        (({"key": random(N, S, 8), "value": random(N, S, 8)}), "key must have 12 features"),
        (({"value": random(N, 2, D)}), "value must have the key's"),
        (({"key": random(2, S, D), "value": random(2, S, D)}), "key must have the query's 3 samples; got 2"),
        (({"attn_mask": torch.zeros(S, L)}), r"attn_mask must have shape \(L, S\), here \(5, 7\)"),
        (({"attn_mask": torch.zeros(2, L, S)}), r"here \(12, 5, 7\); got \(2, 5, 7\)"),
        (({"key_padding_mask": torch.zeros(N, L)}), r"key_padding_mask must have shape \(N, S\), here \(3, 7\)"),
        (({"counts": [1, 1, 1]}), "counts is for a cache"),
        (({"cache": KeyValueCache()}), "key must hold the query's new tokens"),
    ],
)
def test_mistakes_are_named(arguments: dict[str, Any], message: str) -> None:
    ours, _ = pair(batch_first=True)
    given = {"query": random(N, L, D), "key": random(N, S, D), "value": random(N, S, D), **arguments}
    with pytest.raises(ValueError, match=message):
        ours(**given)


def test_a_mask_of_integers_is_refused() -> None:
    ours, _ = pair(batch_first=True)
    x = random(N, L, D)
    with pytest.raises(TypeError, match=r"attn_mask must be a boolean or floating-point tensor; got torch\.int64"):
        ours(x, x, x, attn_mask=torch.zeros(L, L, dtype=torch.int64))


def test_what_is_kept_for_backward(backend: str) -> None:
    """Input, packed projection, attention's output and a number a row: nothing of L x S, and no head twice."""
    if backend == "reference":
        pytest.skip("the reference holds the matrix of weights")
    ours, _ = pair(torch.float32, batch_first=True)
    length = 64
    x = torch.randn(N, length, D, requires_grad=True)
    parameters = {value.untyped_storage().data_ptr() for value in ours.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        output, _ = ours(x, x, x, need_weights=False)
    assert output.requires_grad
    assert sum(kept.values()) == 4 * N * length * (D + 3 * D + D + H)


def test_it_compiles_whole(backend: str) -> None:
    if backend == "cpu":
        pytest.skip("one backend shows it; compiling takes seconds")
    ours, _ = pair(torch.float32, batch_first=True)
    x = random(N, L, D).float()
    compiled = torch.compile(ours, fullgraph=True, backend="aot_eager")
    assert_same(
        results(compiled, (x, x, x), need_weights=False, is_causal=True),
        results(ours, (x, x, x), need_weights=False, is_causal=True),
    )
    torch._dynamo.reset()


def test_inside_of_torchs_encoder_layer() -> None:
    torch.manual_seed(0)
    layer = torch.nn.TransformerEncoderLayer(D, H, 16, dropout=0.0, batch_first=True, dtype=torch.float64)
    other = copy.deepcopy(layer)
    ours = MultiheadAttention(D, H, batch_first=True, dtype=torch.float64)
    ours.load_state_dict(layer.self_attn.state_dict())
    other.self_attn = ours
    x = random(N, L, D)
    padding = PADDINGS["boolean"](L)
    torch.testing.assert_close(
        other(x, src_key_padding_mask=padding)[~padding], layer(x, src_key_padding_mask=padding)[~padding]
    )
