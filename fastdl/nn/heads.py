"""Taking a packed projection apart into heads, and putting heads together again, without copying either way."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

__all__ = ["merge_heads", "split_heads"]


def split_heads(packed: Tensor, parts: int, num_heads: int) -> tuple[Tensor, ...]:
    """Views of a packed projection, one a part, with their heads in a dimension of their own.

    A layer that projects its input to queries, keys and values does so with one matrix, (3 H E, D): one large product
    in place of three. Its output holds, for each token, the queries of all heads, then the keys, then the values.

    Args:
        packed: (N, L, parts * H * E), any strides.
        parts: 3 for query, key and value.
        num_heads: H.

    Returns:
        ``parts`` views of ``packed``, each (N, H, L, E), for `fastdl.ops.scaled_dot_product_attention`, which reads
        them where they are. Their gradients lie side by side in memory if the op made them so, and then are the
        gradient of ``packed`` as they stand.
    """
    if torch.compiler.is_compiling() or _is_transformed() or not (torch.is_grad_enabled() and packed.requires_grad):
        return _views(packed, parts, num_heads)
    views: tuple[Tensor, ...] = _SplitHeads.apply(packed, parts, num_heads)
    return views


def merge_heads(heads: Tensor) -> Tensor:
    """(N, H, L, E) as (N, L, H * E): a view where heads lie inside of the length, as attention's output does."""
    return heads.transpose(1, 2).flatten(2)


def _views(packed: Tensor, parts: int, num_heads: int) -> tuple[Tensor, ...]:
    features = packed.shape[-1] // (parts * num_heads)
    apart = packed.unflatten(-1, (parts, num_heads, features))
    return tuple(part.transpose(1, 2) for part in apart.unbind(2))


def _is_transformed() -> bool:
    return torch.autograd.forward_ad._current_level >= 0 or torch._C._are_functorch_transforms_active()


class _SplitHeads(torch.autograd.Function):
    """`_views`, whose backward copies nothing where the gradients are already packed; autograd's own stacks them."""

    @staticmethod
    def forward(ctx: Any, packed: Tensor, parts: int, num_heads: int) -> tuple[Tensor, ...]:
        ctx.set_materialize_grads(False)
        ctx.shape = packed.shape
        ctx.parts, ctx.num_heads = parts, num_heads
        ctx.options = {"dtype": packed.dtype, "device": packed.device}
        return _views(packed, parts, num_heads)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor, None, None]:
        if not torch.is_grad_enabled() and (together := packed_buffer(gradients)) is not None:
            return together.view(ctx.shape), None, None
        samples, length, width = ctx.shape
        heads = ctx.num_heads
        whole = [
            torch.zeros((samples, heads, length, width // (ctx.parts * heads)), **ctx.options) if part is None else part
            for part in gradients
        ]
        return torch.stack([part.transpose(1, 2) for part in whole], dim=2).flatten(2), None, None


def packed_buffer(slices: tuple[Tensor | None, ...]) -> Tensor | None:
    """The contiguous (N, L, parts, H, E) tensor of which ``slices``, each (N, H, L, E), are the parts in their order.

    None where they are anything else: in memory of their own, in another order, or with another layout.
    """
    first = slices[0]
    if first is None or type(first) is not Tensor or first.numel() == 0:
        return None
    samples, heads, length, features = first.shape
    parts = len(slices)
    strides = (length * parts * heads * features, features, parts * heads * features, 1)
    start = first.storage_offset()
    for number, part in enumerate(slices):
        if part is None or type(part) is not Tensor or part.shape != first.shape or part.dtype != first.dtype:
            return None
        if part.storage_offset() != start + number * heads * features or not _has_strides(part, strides):
            return None
        if part.untyped_storage().data_ptr() != first.untyped_storage().data_ptr():
            return None
    return first.as_strided(
        (samples, length, parts, heads, features), (strides[0], strides[2], heads * features, features, 1), start
    )


def _has_strides(tensor: Tensor, strides: tuple[int, ...]) -> bool:
    """Whether the strides are these, wherever there is more than one step to take."""
    return all(
        size == 1 or stride == wanted
        for size, stride, wanted in zip(tensor.shape, tensor.stride(), strides, strict=True)
    )
