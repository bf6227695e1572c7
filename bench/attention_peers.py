"""torch's attention backends one by one, and flex_attention, on a GPU; each refuses what it does not serve."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from .cases import Case, Function


def _on(backend: Any, case: Case) -> Function:
    causal = case.variant == "causal"

    def function(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> Tensor:
        with sdpa_kernel(backend):
            return F.scaled_dot_product_attention(query, key, value, mask, is_causal=causal)

    return function


def flash(case: Case) -> Function | None:
    """It takes half precision and no mask."""
    return (
        None
        if case.dtype == "float32" or case.variant in ("padding", "bias")
        else _on(SDPBackend.FLASH_ATTENTION, case)
    )


def cudnn(case: Case) -> Function | None:
    return None if case.dtype == "float32" else _on(SDPBackend.CUDNN_ATTENTION, case)


def efficient(case: Case) -> Function | None:
    return _on(SDPBackend.EFFICIENT_ATTENTION, case)


def flex(case: Case) -> Function | None:
    """Compiled, with its block mask made beforehand; the bias is read by its score function."""
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    compiled: Any = torch.compile(flex_attention, dynamic=False)
    length = case.size[2]

    def causal_mask(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return q >= k

    blocks = create_block_mask(causal_mask, None, None, length, length) if case.variant == "causal" else None

    def function(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> Tensor:
        def score(value: Tensor, b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
            assert mask is not None
            return (
                value + mask[0, h, q, k] if case.variant == "bias" else value.masked_fill(~mask[b, 0, 0, k], -torch.inf)
            )

        output: Tensor = compiled(query, key, value, score if mask is not None else None, blocks)
        return output

    return function
