"""Convolution + BatchNorm + ReLU as ResNets have it: in training, and for inference with the norm folded in."""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fastdl
from fastdl.nn.folded_conv import FoldedConvAct, folded

from . import onnx_peers
from .cases import Benchmark, Case, Function, Shape, expand, expand_in_turns
from .counting import Work, convolution_backward, convolution_forward, norm_backward, norm_forward
from .peers import Peer

ACTIVATION = "relu"
MOMENTUM, EPS = 0.1, 1e-5
PARAMETER_BYTES = 4
HALF = ("float32", "bfloat16")
TRAINING, INFERENCE = "training", "inference"

# Of as many channels in as out, so that the output's gradient is of the input's shape. The kernel's size by network.
KERNELS = {
    "CIFAR ResNet-18, stage 1": 3,
    "CIFAR ResNet-18, stage 2": 3,
    "CIFAR ResNet-18, stage 3": 3,
    "CIFAR ResNet-18, stage 4": 3,
    "ResNet-50, stage 1": 3,
    "ResNet-50, stage 2": 3,
    "ResNet-50, stage 1, pointwise": 1,
    "ResNet-50, stage 3, pointwise": 1,
    "batch of 2, 8x8": 3,
}
SHAPES = (
    Shape((64, 64, 32, 32), "CIFAR ResNet-18, stage 1", dtypes=HALF),
    Shape((64, 128, 16, 16), "CIFAR ResNet-18, stage 2", quick=True, dtypes=HALF),
    Shape((64, 256, 8, 8), "CIFAR ResNet-18, stage 3", extra=True),
    Shape((64, 512, 4, 4), "CIFAR ResNet-18, stage 4", extra=True),
    Shape((8, 64, 56, 56), "ResNet-50, stage 1", extra=True),
    Shape((8, 128, 28, 28), "ResNet-50, stage 2", extra=True),
    Shape((8, 256, 56, 56), "ResNet-50, stage 1, pointwise", dtypes=HALF),
    Shape((8, 256, 14, 14), "ResNet-50, stage 3, pointwise", extra=True),
    Shape((2, 64, 8, 8), "batch of 2, 8x8", quick=True),
)
# Training and inference in turns, as every shape is seen before the second round over them begins.
GPU_SHAPES = (
    Shape((128, 256, 56, 56), "ResNet-50, stage 1, pointwise", dtypes=HALF),
    Shape((128, 64, 56, 56), "ResNet-50, stage 1", quick=True, dtypes=HALF),
    Shape((128, 1024, 14, 14), "ResNet-50, stage 3, pointwise", dtypes=HALF),
    Shape((512, 64, 32, 32), "CIFAR ResNet-18, stage 1", dtypes=HALF),
    Shape((128, 128, 28, 28), "ResNet-50, stage 2", dtypes=HALF),
    Shape((2, 64, 8, 8), "batch of 2, 8x8", quick=True, dtypes=HALF),
)
GPU_CASES = tuple(
    replace(case, variant=variant)
    for case in expand_in_turns(GPU_SHAPES, ACTIVATION)
    for variant in (TRAINING, INFERENCE)
)
CASES = tuple(
    replace(case, variant=variant) for variant in (TRAINING, INFERENCE) for case in expand(SHAPES, ACTIVATION)
)


def kernel_of(case: Case) -> int:
    return KERNELS[case.network]


def parameters(case: Case, device: torch.device) -> tuple[Tensor, ...]:
    """The convolution's weight in the input's dtype and layout; the norm's four in float32. Leaves in training."""
    channels, kernel = case.size[1], kernel_of(case)
    generator = torch.Generator(device=device).manual_seed(1)
    shape = (channels, channels, kernel, kernel)
    scale = (2 / (channels * kernel**2)) ** 0.5
    weight = scale * torch.randn(shape, generator=generator, device=device)
    layout = torch.channels_last if case.layout == "channels_last" else torch.contiguous_format
    weight = weight.to(getattr(torch, case.dtype)).contiguous(memory_format=layout)
    gamma = 1 + 0.1 * torch.randn(channels, generator=generator, device=device)
    beta = 0.1 * torch.randn(channels, generator=generator, device=device)
    leaves = (weight, gamma, beta)
    for leaf in leaves:
        leaf.requires_grad_(case.variant == TRAINING)
    return *leaves, torch.zeros(channels, device=device), torch.ones(channels, device=device)


def convolve(case: Case, input: Tensor, weight: Tensor) -> Tensor:
    return F.conv2d(input, weight, padding=kernel_of(case) // 2)


def ours(case: Case) -> Function:
    """The op in training; for inference what `fastdl.nn.fold` makes of it, once, before the first call."""
    if case.variant == TRAINING:

        def train(input: Tensor, weight: Tensor, gamma: Tensor, beta: Tensor, mean: Tensor, var: Tensor) -> Tensor:
            return fastdl.ops.conv_norm_act(
                input, weight, padding=kernel_of(case) // 2, norm_weight=gamma, norm_bias=beta, running_mean=mean,
                running_var=var, training=True, momentum=MOMENTUM, eps=EPS, activation=ACTIVATION,
            )  # fmt: skip

        return train
    made: dict[int, tuple[Tensor, FoldedConvAct]] = {}

    def infer(input: Tensor, weight: Tensor, gamma: Tensor, beta: Tensor, mean: Tensor, var: Tensor) -> Tensor:
        if id(weight) not in made:
            made[id(weight)] = (weight, fold_of(case, weight, gamma, beta, mean, var))
        output: Tensor = made[id(weight)][1](input)
        return output

    return infer


def fold_of(case: Case, weight: Tensor, gamma: Tensor, beta: Tensor, mean: Tensor, var: Tensor) -> FoldedConvAct:
    channels, kernel = case.size[1], kernel_of(case)
    conv = nn.Conv2d(channels, channels, kernel, padding=kernel // 2, bias=False)
    norm = nn.BatchNorm2d(channels, EPS)
    conv.weight = nn.Parameter(weight.detach(), requires_grad=False)
    norm.weight, norm.bias = nn.Parameter(gamma.detach()), nn.Parameter(beta.detach())
    norm.running_mean, norm.running_var = mean, var
    return folded(conv, norm, ACTIVATION)


def eager(case: Case, *, in_place: bool = False) -> Function:
    training = case.variant == TRAINING

    def function(input: Tensor, weight: Tensor, gamma: Tensor, beta: Tensor, mean: Tensor, var: Tensor) -> Tensor:
        x = convolve(case, input, weight)
        return F.relu(F.batch_norm(x, mean, var, gamma, beta, training, MOMENTUM, EPS), inplace=in_place)

    return function


def truth(case: Case) -> Function:
    def function(input: Tensor, weight: Tensor, gamma: Tensor, beta: Tensor, mean: Tensor, var: Tensor) -> Tensor:
        return fastdl.reference.conv_norm_act(
            input, weight, padding=kernel_of(case) // 2, norm_weight=gamma, norm_bias=beta, running_mean=mean,
            running_var=var, training=case.variant == TRAINING, momentum=MOMENTUM, eps=EPS, activation=ACTIVATION,
        )  # fmt: skip

    return function


def convolution(case: Case) -> Function:
    """What is there without norm and activation, and has to be."""

    def function(input: Tensor, weight: Tensor, *rest: Tensor) -> Tensor:
        return convolve(case, input, weight)

    return function


def forward_work(case: Case) -> Work:
    """In training as convolution and norm, one after the other; folded as the convolution, which ends with the rest."""
    work = convolution_forward(case.tensor_bytes, case.size, kernel_of(case))
    if case.variant == INFERENCE:
        return work
    return work + norm_forward(case.tensor_bytes, case.size[1] * PARAMETER_BYTES, case.size[1], case.elements)


def backward_work(case: Case) -> Work:
    work = convolution_backward(case.tensor_bytes, case.size, kernel_of(case))
    return work + norm_backward(case.tensor_bytes, case.size[1] * PARAMETER_BYTES, case.size[1], case.elements)


BENCHMARK = Benchmark(
    name="conv_norm_act",
    title="Convolution + BatchNorm + ReLU, training and folded inference",
    cases=CASES,
    parameters=parameters,
    ours=ours,
    eager=eager,
    truth=truth,
    peers=(
        Peer("in place", lambda: lambda case: eager(case, in_place=True)),
        onnx_peers.peer(onnx_peers.conv_norm_act),
    ),
    forward_work=forward_work,
    backward_work=backward_work,
    parts={"convolution": convolution},
    gpu_cases=GPU_CASES,
    only_forward=lambda case: case.variant == INFERENCE,
    op="batch_norm",
)
