"""LayerNorm of the sum of two tensors, as pre-norm transformers have it, and of one."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import fastdl

from . import norm_peers, onnx_peers
from .cases import Benchmark, Case, Function
from .peers import Peer
from .row_norms import (
    HALF,
    PLAIN,
    RESIDUAL,
    Shape,
    arrange,
    backward_work,
    draw_parameter,
    draw_residual,
    expand,
    forward_work,
)

EPS = 1e-5
CUDA = frozenset({"cuda"})
BOTH = (RESIDUAL, PLAIN)

SHAPES = (
    Shape((8, 197, 768), "ViT-B/16 at 224x224", BOTH, quick=True),
    Shape((64, 65, 192), "ViT-Ti/4 at 32x32", quick=True),
    Shape((64, 197, 192), "ViT-Ti/16 at 224x224", extra=True),
    Shape((16, 128, 768), "BERT-base, 128 tokens", BOTH, extra=True),
    Shape((4, 1024, 768), "GPT-2, 1024 tokens", extra=True),
    Shape((2, 1024, 1024), "GPT-2 medium, 1024 tokens", BOTH),
    Shape((1, 1024, 4096), "LLM, 1024 tokens", extra=True),
    Shape((8, 3136, 96), "Swin-T, first stage", BOTH),
    Shape((40000, 32), "narrow rows", (PLAIN,), dtypes=("float32",), extra=True),
    Shape((64, 50257), "wide rows", (PLAIN,), dtypes=("float32",)),
    Shape((2, 16, 64), "a small call", BOTH, quick=True, dtypes=("float32",)),
)

GPU_SHAPES = (
    Shape((64, 197, 768), "ViT-B/16 at 224x224", BOTH, quick=True),
    Shape((8, 1024, 4096), "LLM, 1024 tokens", quick=True),
    Shape((32, 512, 768), "BERT-base, 512 tokens"),
    Shape((8, 1024, 1024), "GPT-2 medium, 1024 tokens", BOTH),
    Shape((256, 65, 192), "ViT-Ti/4 at 32x32"),
    Shape((32, 3136, 96), "Swin-T, first stage", BOTH),
    Shape((2, 16, 64), "a small call", quick=True),
)


def parameters(case: Case, device: torch.device) -> tuple[Tensor, ...]:
    """The residual where the case has one, weight and bias."""
    return (
        *draw_residual(case, device),
        draw_parameter(case, device, mean=1, seed=3),
        draw_parameter(case, device, mean=0, seed=4),
    )


def ours(case: Case) -> Function:
    return _of(fastdl.ops.layer_norm, case)


def eager(case: Case) -> Function:
    width = case.size[-1]

    def added(input: Tensor, residual: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        total = input + residual
        return F.layer_norm(total, (width,), weight, bias, EPS), total

    def plain(input: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return F.layer_norm(input, (width,), weight, bias, EPS)

    return added if case.variant == RESIDUAL else plain


def truth(case: Case) -> Function:
    return _of(fastdl.reference.layer_norm, case)


def _of(layer_norm: Any, case: Case) -> Function:
    width = case.size[-1]

    def added(input: Tensor, residual: Tensor, weight: Tensor, bias: Tensor) -> Any:
        return layer_norm(input, width, weight, bias, EPS, residual=residual)

    def plain(input: Tensor, weight: Tensor, bias: Tensor) -> Any:
        return layer_norm(input, width, weight, bias, EPS)

    return added if case.variant == RESIDUAL else plain


BENCHMARK = Benchmark(
    name="layer_norm",
    title="LayerNorm, alone and of a sum",
    cases=expand(SHAPES),
    parameters=parameters,
    ours=ours,
    eager=eager,
    truth=truth,
    peers=(
        Peer("apex", lambda: norm_peers.apex_layer_norm, package="apex fused_layer_norm_cuda", devices=CUDA),
        Peer("liger", lambda: norm_peers.liger_layer_norm, package="liger_kernel", devices=CUDA),
        onnx_peers.peer(onnx_peers.layer_norm),
    ),
    forward_work=partial(forward_work, parameters=2, statistics=2),
    backward_work=partial(backward_work, parameters=2, statistics=2),
    overhead_size=(2, 16, 64),
    gpu_cases=expand(GPU_SHAPES, tuple(reversed(HALF))),
    arrange=arrange,
)
