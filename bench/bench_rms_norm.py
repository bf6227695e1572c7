"""RMSNorm of the sum of two tensors, as language models have it, and of one."""

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

EPS = 1e-6
CUDA = frozenset({"cuda"})
BOTH = (RESIDUAL, PLAIN)

SHAPES = (
    Shape((2, 1024, 1024), "LLM of width 1024", BOTH, quick=True),
    Shape((1, 1024, 2048), "LLM of width 2048", quick=True, extra=True),
    Shape((1, 1024, 4096), "LLM of width 4096", BOTH),
    Shape((4, 512, 896), "LLM of width 896", extra=True),
    Shape((8, 197, 768), "ViT-B/16 at 224x224", BOTH, extra=True),
    Shape((8, 16, 512, 64), "queries of 64 features", (PLAIN,)),
    Shape((2, 16, 64), "a small call", BOTH, quick=True, dtypes=("float32",)),
)

GPU_SHAPES = (
    Shape((8, 1024, 4096), "LLM of width 4096", BOTH, quick=True),
    Shape((8, 1024, 2048), "LLM of width 2048", quick=True),
    Shape((8, 1024, 8192), "LLM of width 8192"),
    Shape((16, 1024, 896), "LLM of width 896"),
    Shape((8, 32, 1024, 128), "queries of 128 features", (PLAIN,)),
    Shape((2, 16, 64), "a small call", quick=True),
)


def parameters(case: Case, device: torch.device) -> tuple[Tensor, ...]:
    """The residual where the case has one, and the weight."""
    return (*draw_residual(case, device), draw_parameter(case, device, mean=1, seed=3))


def ours(case: Case) -> Function:
    return _of(fastdl.ops.rms_norm, case)


def eager(case: Case) -> Function:
    width = case.size[-1]

    def added(input: Tensor, residual: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        total = input + residual
        return F.rms_norm(total, (width,), weight, EPS), total

    def plain(input: Tensor, weight: Tensor) -> Tensor:
        return F.rms_norm(input, (width,), weight, EPS)

    return added if case.variant == RESIDUAL else plain


def truth(case: Case) -> Function:
    return _of(fastdl.reference.rms_norm, case)


def _of(rms_norm: Any, case: Case) -> Function:
    width = case.size[-1]

    def added(input: Tensor, residual: Tensor, weight: Tensor) -> Any:
        return rms_norm(input, width, weight, EPS, residual=residual)

    def plain(input: Tensor, weight: Tensor) -> Any:
        return rms_norm(input, width, weight, EPS)

    return added if case.variant == RESIDUAL else plain


BENCHMARK = Benchmark(
    name="rms_norm",
    title="RMSNorm, alone and of a sum",
    cases=expand(SHAPES),
    parameters=parameters,
    ours=ours,
    eager=eager,
    truth=truth,
    peers=(
        Peer("apex", lambda: norm_peers.apex_rms_norm, package="apex fused_layer_norm_cuda", devices=CUDA),
        Peer("liger", lambda: norm_peers.liger_rms_norm, package="liger_kernel", devices=CUDA),
        onnx_peers.peer(onnx_peers.rms_norm),
    ),
    forward_work=partial(forward_work, parameters=1, statistics=1),
    backward_work=partial(backward_work, parameters=1, statistics=1),
    overhead_size=(2, 16, 64),
    gpu_cases=expand(GPU_SHAPES, tuple(reversed(HALF))),
    arrange=arrange,
)
