"""The recorded weights are those that the model used, and rollout follows them through the layers."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import fastdl
from fastdl.models.vit import VisionTransformer
from fastdl.models.vit_attention import attention_rollout, record_attention, weights_of_patches
from fastdl.nn.heads import merge_heads
from tests.models.plain_vit import DEPTH, HEADS, IMAGE, PATCH, SIZES, TOKENS, random_parameters

GRID = IMAGE // PATCH, IMAGE // PATCH


@pytest.fixture(autouse=True)
def reference():
    with fastdl.use_backend("reference"):
        yield


def built(**options: str) -> VisionTransformer:
    model = random_parameters(VisionTransformer(**{**SIZES, **options}))
    assert isinstance(model, VisionTransformer)
    return model


def images(count: int = 2) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(count, 3, IMAGE, IMAGE, generator=generator, dtype=torch.float64)


def test_the_weights_give_the_output_of_the_layer() -> None:
    model = built()
    outputs: list[Tensor] = []
    values: list[Tensor] = []
    for block in model.encoder:
        block.attention.register_forward_hook(
            lambda module, inputs, output: (
                (values.append(module.heads(inputs[0])[2]), outputs.append(output))[2:] or None
            )
        )
    with record_attention(model) as maps:
        assert maps == {}
        logits = model(images())
    torch.testing.assert_close(logits, model(images()))
    assert list(maps) == list(range(DEPTH))
    for layer, weights in maps.items():
        assert weights.shape == (2, HEADS, TOKENS, TOKENS)
        torch.testing.assert_close(weights.sum(-1), torch.ones(2, HEADS, TOKENS, dtype=torch.float64))
        again = model.encoder[layer].attention.output(merge_heads(weights @ values[layer]))
        torch.testing.assert_close(again, outputs[layer])


def test_layers_can_be_chosen_and_nothing_stays_behind() -> None:
    model = built()
    with record_attention(model, [-1]) as maps:
        model(images())
        first = maps[DEPTH - 1]
        model(images(3))
        assert len(maps[DEPTH - 1]) == 3
    assert list(maps) == [DEPTH - 1]
    assert not first.requires_grad
    assert all(not block.attention._forward_pre_hooks for block in model.encoder)
    with pytest.raises(ValueError, match=f"layers must be from 0 to {DEPTH - 1}"), record_attention(model, [DEPTH]):
        pass


def test_rollout_is_the_product_of_the_paper() -> None:
    generator = torch.Generator().manual_seed(0)
    maps = [torch.rand(2, 3, 5, 5, generator=generator, dtype=torch.float64).softmax(-1) for _ in range(3)]
    found = attention_rollout(maps)
    for sample in range(2):
        expected = torch.eye(5, dtype=torch.float64)
        for weights in maps:
            mean = sum(weights[sample, head] for head in range(3)) / 3
            mixed = mean + torch.eye(5, dtype=torch.float64)
            expected = (mixed / mixed.sum(-1, keepdim=True)) @ expected
        torch.testing.assert_close(found[sample], expected)
    torch.testing.assert_close(found.sum(-1), torch.ones(2, 5, dtype=torch.float64))


def test_rollout_of_attention_to_one_token() -> None:
    """Every token looks at token 2 alone: after L layers it has 1 - 2^-L of it, and the rest of itself."""
    weights = torch.zeros(1, 1, 4, 4)
    weights[..., 2] = 1
    rollout = attention_rollout([weights] * 3)[0]
    expected = torch.eye(4) / 8
    expected[:, 2] += 7 / 8
    torch.testing.assert_close(rollout, expected)
    with pytest.raises(ValueError, match="at least one layer"):
        attention_rollout([])


def test_what_the_classifier_reads() -> None:
    weights = torch.rand(TOKENS, TOKENS)
    found = weights_of_patches(built(), weights, GRID)
    assert torch.equal(found.flatten(), weights[0, 1:])
    patches = torch.rand(3, TOKENS - 1, TOKENS - 1)
    found = weights_of_patches(built(pooling="mean"), patches, GRID)
    torch.testing.assert_close(found.flatten(1), patches.mean(1))
