"""BatchNorm + ReLU in training, as ResNets for CIFAR and ImageNet use it."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

import fastdl

from .cases import Benchmark, Case, Function, Shape, expand, expand_in_turns
from .counting import Work, norm_backward, norm_forward
from .peers import Peer

ACTIVATION = "relu"
HALF = ("float32", "bfloat16")
MOMENTUM, EPS = 0.1, 1e-5
PARAMETER_BYTES = 4

SHAPES = (
    Shape((128, 16, 32, 32), "CIFAR ResNet-20, stage 1", extra=True),
    Shape((128, 64, 32, 32), "CIFAR ResNet-18, stage 1", dtypes=HALF),
    Shape((128, 128, 16, 16), "CIFAR ResNet-18, stage 2", quick=True),
    Shape((128, 256, 8, 8), "CIFAR ResNet-18, stage 3", extra=True),
    Shape((128, 512, 4, 4), "CIFAR ResNet-18, stage 4", extra=True),
    Shape((16, 64, 112, 112), "ResNet-50, stem", extra=True),
    Shape((16, 256, 56, 56), "ResNet-50, stage 1"),
    Shape((16, 512, 28, 28), "ResNet-50, stage 2", extra=True),
    Shape((16, 1024, 14, 14), "ResNet-50, stage 3", quick=True, dtypes=HALF),
    Shape((2, 64, 8, 8), "batch of 2, 8x8", quick=True),
)

# In bfloat16 (float32: twice as much) 206, 17, 0.02, 103, 6.4, 51 and 2 MB.
GPU_SHAPES = (
    Shape((128, 256, 56, 56), "ResNet-50, stage 1", dtypes=HALF),
    Shape((128, 64, 32, 32), "CIFAR ResNet-18, stage 1", quick=True, dtypes=HALF),
    Shape((2, 64, 8, 8), "batch of 2, 8x8", quick=True, dtypes=HALF),
    Shape((128, 512, 28, 28), "ResNet-50, stage 2", dtypes=HALF),
    Shape((16, 1024, 14, 14), "ResNet-50, stage 3, batch of 16", dtypes=HALF),
    Shape((128, 1024, 14, 14), "ResNet-50, stage 3", dtypes=HALF),
    Shape((128, 512, 4, 4), "CIFAR ResNet-18, stage 4", dtypes=HALF),
)


def parameters(case: Case, device: torch.device) -> tuple[Tensor, ...]:
    """Weight, bias, running mean and variance, in float32 for every dtype of the input, as autocast leaves them."""
    channels = case.size[1]
    generator = torch.Generator(device=device).manual_seed(1)
    weight = 1 + 0.1 * torch.randn(channels, generator=generator, device=device)
    bias = 0.1 * torch.randn(channels, generator=generator, device=device)
    running = torch.zeros(channels, device=device), torch.ones(channels, device=device)
    return weight.requires_grad_(), bias.requires_grad_(), *running


def ours(case: Case) -> Function:
    def function(input: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
        return fastdl.ops.batch_norm(input, mean, variance, weight, bias, True, MOMENTUM, EPS, activation=ACTIVATION)

    return function


def eager(case: Case) -> Function:
    def function(input: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
        return F.relu(F.batch_norm(input, mean, variance, weight, bias, True, MOMENTUM, EPS))

    return function


def in_place(case: Case) -> Function:
    """torch with the activation in place, as most ResNets are written."""

    def function(input: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
        return F.relu(F.batch_norm(input, mean, variance, weight, bias, True, MOMENTUM, EPS), inplace=True)

    return function


def truth(case: Case) -> Function:
    def function(input: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
        return fastdl.reference.batch_norm(
            input, mean, variance, weight, bias, True, MOMENTUM, EPS, activation=ACTIVATION
        )

    return function


def forward_work(case: Case) -> Work:
    """As any normalisation, and the running statistics are read and written."""
    channel_bytes = case.size[1] * PARAMETER_BYTES
    return norm_forward(case.tensor_bytes, channel_bytes, case.size[1], case.elements) + Work(4 * channel_bytes)


def backward_work(case: Case) -> Work:
    return norm_backward(case.tensor_bytes, case.size[1] * PARAMETER_BYTES, case.size[1], case.elements)


BENCHMARK = Benchmark(
    name="batch_norm",
    title="BatchNorm + ReLU, training",
    cases=expand(SHAPES, ACTIVATION),
    parameters=parameters,
    ours=ours,
    eager=eager,
    truth=truth,
    peers=(Peer("in place", lambda: in_place),),
    forward_work=forward_work,
    backward_work=backward_work,
    gpu_cases=expand_in_turns(GPU_SHAPES, ACTIVATION),
)
