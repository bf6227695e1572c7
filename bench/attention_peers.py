"""Attention by torch's backends one by one, by flex_attention, and by the packages flash-attn and xformers.

Each refuses, by None, what it does not serve. On the CPU eager torch takes its flash kernel by itself wherever it can,
so that only the plain composition of products (``math``) and flex_attention stand beside it there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from . import onnx_peers
from .cases import DTYPES, Case, Function
from .peers import Peer

# What a case has beside query, key and value: `causal`; `padding`, a boolean mask of keys, the last quarter of every
# second sample; `bias`, a learned addend for each head and pair of positions.
CAUSAL, PADDING, BIAS = "causal", "padding", "bias"
# The composition writes all scores, some of them several times: beyond this it is left out.
MOST_SCORE_BYTES = 2 << 30
CUDA, CPU = frozenset({"cuda"}), frozenset({"cpu"})


def _on(backend: Any, case: Case) -> Function:
    causal = case.variant == CAUSAL

    def function(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> Tensor:
        with sdpa_kernel(backend):
            return F.scaled_dot_product_attention(query, key, value, mask, is_causal=causal)

    return function


def flash(case: Case) -> Function | None:
    """torch's copy of FlashAttention takes half precision and no mask."""
    if case.dtype == "float32" or case.variant in (PADDING, BIAS):
        return None
    return _on(SDPBackend.FLASH_ATTENTION, case)


def cudnn(case: Case) -> Function | None:
    return None if case.dtype == "float32" else _on(SDPBackend.CUDNN_ATTENTION, case)


def efficient(case: Case) -> Function | None:
    return _on(SDPBackend.EFFICIENT_ATTENTION, case)


def math(case: Case) -> Function | None:
    samples, heads, length, _ = case.size
    scores = samples * heads * length**2 * DTYPES[case.dtype].itemsize
    return _on(SDPBackend.MATH, case) if scores <= MOST_SCORE_BYTES else None


def flex(case: Case) -> Function:
    """Compiled, with its block mask made beforehand; the bias is read by its score function."""
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    compiled: Any = torch.compile(flex_attention, dynamic=False)
    length = case.size[2]
    blocks: dict[torch.device, Any] = {}

    def causal_mask(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return q >= k

    def blocks_on(device: torch.device) -> Any:
        if device not in blocks:
            blocks[device] = create_block_mask(causal_mask, None, None, length, length, device=str(device))
        return blocks[device]

    def function(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> Tensor:
        def score(value: Tensor, b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
            assert mask is not None
            if case.variant == BIAS:
                return value + mask[0, h, q, k]
            return torch.where(mask[b, 0, 0, k], value, -torch.inf)

        seen = blocks_on(query.device) if case.variant == CAUSAL else None
        output: Tensor = compiled(query, key, value, score if mask is not None else None, seen)
        return output

    return function


def flex_forward(case: Case) -> Function:
    """On the CPU, where it has no backward and refuses tensors that ask for one even where no gradient is taken."""
    attend = flex(case)

    def function(*tensors: Tensor) -> Tensor:
        output: Tensor = attend(*(tensor.detach() for tensor in tensors))
        return output

    return function


def flash_attn(case: Case) -> Function | None:
    """FlashAttention 2 of the package of its authors: (N, L, H, E), half precision, no mask."""
    from flash_attn import flash_attn_func  # type: ignore[import-not-found]

    return _of_package(flash_attn_func, case)


def flash_attn_3(case: Case) -> Function | None:
    """FlashAttention 3, for Hopper. Some of its releases return the log-sum-exp as well."""
    from flash_attn_interface import flash_attn_func  # type: ignore[import-not-found]

    return _of_package(flash_attn_func, case)


def _of_package(attend: Callable[..., Any], case: Case) -> Function | None:
    if case.dtype == "float32" or case.variant in (PADDING, BIAS):
        return None
    causal = case.variant == CAUSAL

    def function(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        result = attend(query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2), causal=causal)
        output: Tensor = result[0] if isinstance(result, tuple) else result
        return output.transpose(1, 2)

    return function


def xformers(case: Case) -> Function | None:
    """memory_efficient_attention: (N, L, H, E), a bias for every sample; padding would need other shapes."""
    import xformers.ops as ops  # type: ignore[import-not-found]

    if case.variant == PADDING:
        return None
    lower = ops.LowerTriangularMask() if case.variant == CAUSAL else None

    def function(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> Tensor:
        bias = lower if mask is None else mask.expand(query.shape[0], -1, -1, -1)
        turned = (tensor.transpose(1, 2) for tensor in (query, key, value))
        output: Tensor = ops.memory_efficient_attention(*turned, attn_bias=bias)
        return output.transpose(1, 2)

    return function


def peers() -> Iterator[Peer]:
    """All of them, in the order in which they are timed."""
    for name, load in (("flash", flash), ("cudnn", cudnn), ("efficient", efficient)):
        yield Peer(name, lambda load=load: load, devices=CUDA)  # type: ignore[misc]
    yield Peer("flex", lambda: flex, devices=CUDA, compiles=True)
    yield Peer("math", lambda: math)
    yield Peer("flex", lambda: flex_forward, devices=CPU, only_forward=True, compiles=True)
    yield Peer("flash-attn", lambda: flash_attn, package="flash_attn", devices=CUDA)
    yield Peer("flash-attn 3", lambda: flash_attn_3, package="flash_attn_interface", devices=CUDA)
    yield Peer("xformers", lambda: xformers, package="xformers", devices=CUDA)
    yield onnx_peers.peer(onnx_peers.attention)
