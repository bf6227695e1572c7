"""Eight blocks of convolution, BatchNorm and activation in training, as `fastdl.nn.ConvNormActChain` runs them."""

from __future__ import annotations

import itertools

import torch
import torch.nn.functional as F
from torch import Tensor

import fastdl
from fastdl.ops import batch_norm, conv_norm_act, norm_act_conv

from .bench_conv_norm_act import EPS, MOMENTUM, PARAMETER_BYTES
from .cases import Benchmark, Case, Function, Shape, expand, expand_in_turns
from .counting import Work, convolution_backward, convolution_forward, norm_backward, norm_forward
from .peers import Peer

BLOCKS, KERNEL = 8, 3
# A kink in eight places one behind the other would let a last digit decide over a gradient, in torch as in ours.
ACTIVATION = "silu"
SHAPES = (
    Shape((64, 32, 16, 16), "the experiments' network"),
    Shape((32, 64, 32, 32), "CIFAR ResNet-18, stage 1"),
    Shape((2, 64, 8, 8), "batch of 2, 8x8", quick=True),
)
GPU_SHAPES = (
    Shape((128, 64, 32, 32), "CIFAR ResNet-18, stage 1"),
    Shape((512, 32, 16, 16), "the experiments' network"),
    Shape((2, 64, 8, 8), "batch of 2, 8x8", quick=True),
)
CASES = expand(SHAPES, ACTIVATION)


def parameters(case: Case, device: torch.device) -> tuple[Tensor, ...]:
    """For each block the convolution's weight in the input's layout, and the norm's four in float32."""
    channels = case.size[1]
    generator = torch.Generator(device=device).manual_seed(1)
    layout = torch.channels_last if case.layout == "channels_last" else torch.contiguous_format
    made: list[Tensor] = []
    for _ in range(BLOCKS):
        weight = torch.randn(channels, channels, KERNEL, KERNEL, generator=generator, device=device)
        weight = (weight * (2 / (channels * KERNEL**2)) ** 0.5).contiguous(memory_format=layout)
        gamma = 1 + 0.1 * torch.randn(channels, generator=generator, device=device)
        beta = 0.1 * torch.randn(channels, generator=generator, device=device)
        made += [leaf.requires_grad_() for leaf in (weight, gamma, beta)]
        made += [torch.zeros(channels, device=device), torch.ones(channels, device=device)]
    return tuple(made)


def by_block(tensors: tuple[Tensor, ...]) -> list[tuple[Tensor, ...]]:
    return [tensors[i : i + 5] for i in range(0, len(tensors), 5)]


def ours(case: Case) -> Function:
    """The ops that the module calls, in its order."""

    def function(input: Tensor, *tensors: Tensor) -> Tensor:
        blocks = by_block(tensors)
        x = F.conv2d(input, blocks[0][0], padding=KERNEL // 2)
        for (_, gamma, beta, mean, variance), (weight, *_rest) in itertools.pairwise(blocks):
            x = norm_act_conv(
                x, weight, padding=KERNEL // 2, norm_weight=gamma, norm_bias=beta, running_mean=mean,
                running_var=variance, training=True, momentum=MOMENTUM, eps=EPS, activation=case.activation,
            )  # fmt: skip
        _, gamma, beta, mean, variance = blocks[-1]
        return batch_norm(x, mean, variance, gamma, beta, True, MOMENTUM, EPS, activation=case.activation)

    return function


def block_by_block(case: Case) -> Function:
    """The same as one conv_norm_act after the other, which keep what their convolutions are given as well."""

    def function(input: Tensor, *tensors: Tensor) -> Tensor:
        for weight, gamma, beta, mean, variance in by_block(tensors):
            input = conv_norm_act(
                input, weight, padding=KERNEL // 2, norm_weight=gamma, norm_bias=beta, running_mean=mean,
                running_var=variance, training=True, momentum=MOMENTUM, eps=EPS, activation=case.activation,
            )  # fmt: skip
        return input

    return function


def eager(case: Case) -> Function:
    def function(input: Tensor, *tensors: Tensor) -> Tensor:
        for weight, gamma, beta, mean, variance in by_block(tensors):
            x = F.conv2d(input, weight, padding=KERNEL // 2)
            input = F.silu(F.batch_norm(x, mean, variance, gamma, beta, True, MOMENTUM, EPS))
        return input

    return function


def truth(case: Case) -> Function:
    def function(input: Tensor, *tensors: Tensor) -> Tensor:
        for weight, gamma, beta, mean, variance in by_block(tensors):
            input = fastdl.reference.conv_norm_act(
                input, weight, padding=KERNEL // 2, norm_weight=gamma, norm_bias=beta, running_mean=mean,
                running_var=variance, training=True, momentum=MOMENTUM, eps=EPS, activation=case.activation,
            )  # fmt: skip
        return input

    return function


def convolutions(case: Case) -> Function:
    """What is there without norms and activations, and has to be."""

    def function(input: Tensor, *tensors: Tensor) -> Tensor:
        for block in by_block(tensors):
            input = F.conv2d(input, block[0], padding=KERNEL // 2)
        return input

    return function


def repeated(work: Work) -> Work:
    return Work(BLOCKS * work.bytes, BLOCKS * work.matrix_operations, BLOCKS * work.vector_operations)


def forward_work(case: Case) -> Work:
    convolution = convolution_forward(case.tensor_bytes, case.size, KERNEL)
    channel_bytes = case.size[1] * PARAMETER_BYTES
    return repeated(convolution + norm_forward(case.tensor_bytes, channel_bytes, case.size[1], case.elements))


def backward_work(case: Case) -> Work:
    convolution = convolution_backward(case.tensor_bytes, case.size, KERNEL)
    channel_bytes = case.size[1] * PARAMETER_BYTES
    return repeated(convolution + norm_backward(case.tensor_bytes, channel_bytes, case.size[1], case.elements))


BENCHMARK = Benchmark(
    name="conv_norm_act_chain",
    title="Eight blocks of convolution + BatchNorm + activation in training",
    cases=CASES,
    parameters=parameters,
    ours=ours,
    eager=eager,
    truth=truth,
    peers=(Peer("block by block", lambda: block_by_block),),
    forward_work=forward_work,
    backward_work=backward_work,
    gpu_cases=expand_in_turns(GPU_SHAPES, ACTIVATION),
    parts={"convolutions": convolutions},
    op="norm_act_conv",
)
