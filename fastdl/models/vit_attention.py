"""What a Vision Transformer looks at: the weights of its attention, layer by layer, and the way through all layers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor

from fastdl.models.vit import VisionTransformer
from fastdl.models.vit_encoder import SelfAttention
from fastdl.nn.attention_weights import attention_weights

__all__ = ["attention_rollout", "record_attention", "weights_of_patches"]


@contextmanager
def record_attention(model: VisionTransformer, layers: Iterable[int] | None = None) -> Iterator[dict[int, Tensor]]:
    """Inside of the block, keep the weights A of eq. 6 of every forward pass.

    The fused op never holds them, so they are computed beside it, from the same input, for the layers that are asked
    for: a projection and a matrix of T x T for each head more. The model's output is not touched, and no gradient goes
    through the weights.

    Args:
        model: whose forward is called inside of the block.
        layers: numbers of encoder blocks from 0, negative ones from the end; None is all.

    Yields:
        The weights (N, heads, T, T) by layer, counted from 0, of the latest forward pass; empty before it. Row i tells
        how much token i takes from each token, and adds up to 1.

    Raises:
        ValueError: there is no such layer.
    """
    blocks = list(model.encoder)
    wanted = range(len(blocks)) if layers is None else [_checked(layer, len(blocks)) for layer in layers]
    maps: dict[int, Tensor] = {}

    def recorder(layer: int) -> Callable[[SelfAttention, tuple[Any, ...]], None]:
        @torch.no_grad()
        def record(attention: SelfAttention, inputs: tuple[Any, ...]) -> None:
            query, key, _ = attention.heads(inputs[0])
            maps[layer] = attention_weights(query, key)

        return record

    with ExitStack() as stack:
        for layer in sorted(wanted):
            stack.callback(blocks[layer].attention.register_forward_pre_hook(recorder(layer)).remove)  # type: ignore[union-attr]
        yield maps


def attention_rollout(maps: Sequence[Tensor]) -> Tensor:
    """How much of each input token has come to each output token through all layers (Abnar and Zuidema 2020).

    A block adds what it attended to to what was there, so that half of a token is what it was before; the weights of
    all heads are averaged, and layers follow each other as a product (arXiv:2005.00928, section 3, attention rollout):

        A~_l = (mean over heads of A_l + I) / 2,   rollout = A~_L ... A~_2 A~_1

    Args:
        maps: weights (N, heads, T, T) of all layers, the first one first.

    Returns:
        (N, T, T); every row adds up to 1.
    """
    if not maps:
        raise ValueError("maps must hold the weights of at least one layer")
    identity = torch.eye(maps[0].shape[-1], dtype=maps[0].dtype, device=maps[0].device)
    rollout = identity.expand(maps[0].shape[0], -1, -1)
    for weights in maps:
        rollout = 0.5 * (weights.mean(dim=1) + identity) @ rollout
    return rollout


def weights_of_patches(model: VisionTransformer, weights: Tensor, grid: tuple[int, int]) -> Tensor:
    """What the head's input takes from each patch: rows of weights (..., T, T) as an image (..., h, w).

    That is the class token's row without its first entry; where patches are averaged, the mean of their rows.
    """
    row = weights[..., 0, 1:] if model.class_token is not None else weights.mean(dim=-2)
    return row.unflatten(-1, grid)


def _checked(layer: int, count: int) -> int:
    if not -count <= layer < count:
        raise ValueError(f"layers must be from 0 to {count - 1}, or negative from the end; got {layer}")
    return layer % count
