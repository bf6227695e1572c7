"""GroupNorm + SiLU, as diffusion U-Nets and small CIFAR networks use it."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

import fastdl

from . import onnx_peers
from .cases import DTYPES, Benchmark, Case, Function, Shape, expand, expand_in_turns
from .counting import Work, norm_backward, norm_forward
from .group_norm_peers import apex, liger
from .peers import Peer

ACTIVATION = "silu"
HALF = ("float32", "bfloat16")

SHAPES = (
    Shape((4, 320, 64, 64), "latent diffusion U-Net, 64x64", 32, dtypes=HALF),
    Shape((2, 640, 32, 32), "latent diffusion U-Net, 32x32", 32, quick=True, dtypes=HALF),
    Shape((2, 1280, 16, 16), "latent diffusion U-Net, 16x16", 32, extra=True),
    Shape((1, 512, 64, 64), "latent diffusion decoder, 64x64", 32, extra=True),
    Shape((1, 128, 256, 256), "latent diffusion decoder, 256x256", 32),
    Shape((4, 128, 64, 64), "pixel diffusion U-Net, 64x64", 32, extra=True),
    Shape((64, 64, 32, 32), "CIFAR network, 32x32", 32, extra=True),
    Shape((128, 64, 32, 32), "CIFAR network, 32x32", 32, extra=True),
    Shape((128, 128, 16, 16), "CIFAR network, 16x16", 32, quick=True),
    Shape((128, 256, 8, 8), "CIFAR network, 8x8", 32, extra=True),
    Shape((2, 64, 8, 8), "CIFAR network, 8x8, batch of 2", 32, quick=True),
)

# In bfloat16 (float32: twice as much) 134, 10, 0.02, 84, 1.3, 67 and 4 MB.
GPU_SHAPES = (
    Shape((8, 512, 128, 128), "latent diffusion decoder, 128x128", 32, dtypes=HALF),
    Shape((4, 320, 64, 64), "latent diffusion U-Net, 64x64", 32, quick=True, dtypes=HALF),
    Shape((2, 64, 8, 8), "CIFAR network, 8x8, batch of 2", 32, quick=True, dtypes=HALF),
    Shape((32, 320, 64, 64), "latent diffusion U-Net, 64x64, batch of 32", 32, dtypes=HALF),
    Shape((2, 1280, 16, 16), "latent diffusion U-Net, 16x16", 32, dtypes=HALF),
    Shape((1, 128, 512, 512), "latent diffusion decoder, 512x512", 32, dtypes=HALF),
    Shape((128, 256, 8, 8), "CIFAR network, 8x8", 32, dtypes=HALF),
)


def parameters(case: Case, device: torch.device) -> tuple[Tensor, ...]:
    """Weight and bias, in the input's dtype as in a network that was cast as a whole."""
    channels, dtype = case.size[1], DTYPES[case.dtype]
    generator = torch.Generator(device=device).manual_seed(1)
    weight = 1 + 0.1 * torch.randn(channels, generator=generator, device=device)
    bias = 0.1 * torch.randn(channels, generator=generator, device=device)
    return weight.to(dtype).requires_grad_(), bias.to(dtype).requires_grad_()


def ours(case: Case) -> Function:
    groups = _groups(case)

    def function(input: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return fastdl.ops.group_norm(input, groups, weight, bias, activation=ACTIVATION)

    return function


def eager(case: Case) -> Function:
    groups = _groups(case)

    def function(input: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return F.silu(F.group_norm(input, groups, weight, bias))

    return function


def in_place(case: Case) -> Function:
    """torch with the activation in place: what a careful user of eager torch writes."""
    groups = _groups(case)

    def function(input: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return F.silu(F.group_norm(input, groups, weight, bias), inplace=True)

    return function


def truth(case: Case) -> Function:
    groups = _groups(case)

    def function(input: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return fastdl.reference.group_norm(input, groups, weight, bias, activation=ACTIVATION)

    return function


def _groups(case: Case) -> int:
    assert case.num_groups is not None
    return case.num_groups


def _channel_bytes(case: Case) -> int:
    return case.size[1] * DTYPES[case.dtype].itemsize


def forward_work(case: Case) -> Work:
    return norm_forward(case.tensor_bytes, _channel_bytes(case), case.size[0] * _groups(case), case.elements)


def backward_work(case: Case) -> Work:
    return norm_backward(case.tensor_bytes, _channel_bytes(case), case.size[0] * _groups(case), case.elements)


BENCHMARK = Benchmark(
    name="group_norm",
    title="GroupNorm + SiLU",
    cases=expand(SHAPES, ACTIVATION),
    parameters=parameters,
    ours=ours,
    eager=eager,
    truth=truth,
    peers=(
        Peer("in place", lambda: in_place),
        Peer("apex", lambda: apex, package="group_norm_cuda", devices=frozenset({"cuda"})),
        Peer("liger", lambda: liger, package="liger_kernel", devices=frozenset({"cuda"})),
        onnx_peers.peer(onnx_peers.group_norm_silu),
    ),
    forward_work=forward_work,
    backward_work=backward_work,
    gpu_cases=expand_in_turns(GPU_SHAPES, ACTIVATION),
)
