"""Scaled dot-product attention at the shapes of ViT, BERT and GPT, beside torch's own."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

import fastdl
from fastdl.reference.attention import scaled_dot_product_attention as definition

from .attention_peers import BIAS, CAUSAL, PADDING, peers
from .cases import ATTENTION_LAYOUTS, DTYPES, Benchmark, Case, Function
from .counting import Work, attention_backward, attention_forward

HALF = ("float32", "bfloat16")


@dataclass(frozen=True)
class Shape:
    """One (N, H, L, E) and where it comes from.

    ``quick`` puts it into the short selection, ``extra`` leaves it to ``--shapes full``.
    """

    size: tuple[int, int, int, int]
    network: str
    variant: str = ""
    quick: bool = False
    dtypes: tuple[str, ...] = HALF
    layouts: tuple[str, ...] = ATTENTION_LAYOUTS
    extra: bool = False


SHAPES = (
    Shape((16, 6, 65, 64), "ViT-S/4 at 32x32", quick=True),
    Shape((4, 12, 197, 64), "ViT-B/16 at 224x224", quick=True),
    Shape((8, 12, 128, 64), "BERT-base, 128 tokens", extra=True),
    Shape((1, 12, 1024, 64), "GPT-2, 1024 tokens", CAUSAL),
    Shape((8, 12, 128, 64), "BERT-base, padded", PADDING, layouts=("packed",)),
    Shape((2, 8, 256, 64), "T5, relative positions", BIAS, layouts=("packed",), dtypes=("float32",)),
    Shape((4, 8, 197, 32), "small heads", layouts=("packed",), extra=True),
    Shape((4, 16, 257, 80), "ViT-H/14 at 224x224", layouts=("packed",)),
    Shape((2, 8, 256, 96), "Swin-like heads", layouts=("packed",), extra=True),
    Shape((1, 8, 512, 128), "LLM heads", CAUSAL, layouts=("packed",), extra=True),
    Shape((2, 2, 16, 16), "a small call", quick=True, dtypes=("float32",)),
)

GPU_SHAPES = (
    Shape((64, 12, 197, 64), "ViT-B/16 at 224x224", quick=True, layouts=("packed",)),
    Shape((4, 16, 4096, 128), "LLM, 4096 tokens", CAUSAL, dtypes=("bfloat16",)),
    Shape((32, 12, 512, 64), "BERT-base, 512 tokens", quick=True, dtypes=("bfloat16",), layouts=("packed",)),
    Shape((256, 6, 65, 64), "ViT-S/4 at 32x32", dtypes=("bfloat16",), layouts=("packed",)),
    Shape((8, 16, 1024, 64), "GPT-2 medium, 1024 tokens", CAUSAL, quick=True, dtypes=("bfloat16",)),
    Shape((64, 12, 128, 64), "BERT-base, padded", PADDING, dtypes=("bfloat16",), layouts=("packed",)),
    Shape((32, 16, 577, 64), "ViT-L/16 at 384x384", dtypes=("bfloat16",), layouts=("packed",)),
    Shape((1, 16, 16384, 128), "LLM, 16384 tokens", CAUSAL, dtypes=("bfloat16",), layouts=("packed",)),
    Shape((32, 16, 257, 80), "ViT-H/14 at 224x224", dtypes=("bfloat16",), layouts=("packed",)),
    Shape((16, 8, 512, 64), "T5, relative positions", BIAS, dtypes=("bfloat16",), layouts=("packed",)),
    Shape((1024, 4, 16, 32), "16 tokens", dtypes=("bfloat16",), layouts=("packed",)),
)


def expand(shapes: tuple[Shape, ...]) -> tuple[Case, ...]:
    """Every shape in its layouts and dtypes, float32 first."""
    return tuple(
        Case(s.size, layout, dtype, "identity", s.network, None, s.quick and dtype == "float32", s.variant, s.extra)
        for dtype in DTYPES
        for s in shapes
        if dtype in s.dtypes
        for layout in s.layouts
    )


def expand_in_turns(shapes: tuple[Shape, ...]) -> tuple[Case, ...]:
    """Half precision first, as networks are trained on a GPU, shape by shape."""
    return tuple(
        Case(s.size, layout, dtype, "identity", s.network, None, s.quick, s.variant, s.extra)
        for dtype in ("bfloat16", "float32")
        for s in shapes
        if dtype in s.dtypes
        for layout in s.layouts
    )


def arrange(case: Case, values: Tensor) -> Tensor:
    """Packed: (N, L, H, E) in memory, with room for the other two between positions, as slices of a projection lie."""
    if case.layout == "separate":
        return values
    samples, heads, length, features = case.size
    memory = values.new_empty(samples, length, 3, heads, features)
    return memory[:, :, 0].transpose(1, 2).copy_(values)


def parameters(case: Case, device: torch.device) -> tuple[Tensor, ...]:
    """Key and value, and the mask where the case has one."""
    generator = torch.Generator(device=device).manual_seed(1)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, device=device).to(DTYPES[case.dtype])

    samples, heads, length, _ = case.size
    key, value = (arrange(case, draw(*case.size)).requires_grad_() for _ in range(2))
    if case.variant == PADDING:
        lengths = torch.tensor([length - (length // 4) * (i % 2) for i in range(samples)], device=device)
        return key, value, (torch.arange(length, device=device) < lengths[:, None])[:, None, None]
    if case.variant == BIAS:
        return key, value, draw(1, heads, length, length).requires_grad_()
    return key, value


def ours(case: Case) -> Function:
    def function(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> Tensor:
        output: Tensor = fastdl.ops.scaled_dot_product_attention(
            query, key, value, mask, is_causal=case.variant == CAUSAL
        )
        return output

    return function


def eager(case: Case) -> Function:
    def function(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> Tensor:
        return F.scaled_dot_product_attention(query, key, value, mask, is_causal=case.variant == CAUSAL)

    return function


def truth(case: Case) -> Function:
    def function(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> Tensor:
        return definition(query, key, value, mask, is_causal=case.variant == CAUSAL)[0]

    return function


def _pairs(case: Case) -> int:
    """Pairs of query and key that are seen, a head."""
    length = case.size[2]
    return length * (length + 1) // 2 if case.variant == CAUSAL else length * length


def forward_work(case: Case) -> Work:
    return attention_forward(case.tensor_bytes, case.size, _pairs(case))


def backward_work(case: Case) -> Work:
    return attention_backward(case.tensor_bytes, case.size, _pairs(case))


BENCHMARK = Benchmark(
    name="attention",
    title="Attention",
    cases=expand(SHAPES),
    parameters=parameters,
    ours=ours,
    eager=eager,
    truth=truth,
    peers=tuple(peers()),
    forward_work=forward_work,
    backward_work=backward_work,
    overhead_size=(2, 2, 16, 16),
    gpu_cases=expand_in_turns(GPU_SHAPES),
    arrange=arrange,
)
