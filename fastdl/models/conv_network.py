"""A plain convolutional network of equal blocks, to compare depths, activations, norms and orders, all else equal."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from fastdl.nn import ConvNormAct2d
from fastdl.nn.batch_norm import count_batch, takes_batch_statistics, tracked_statistics
from fastdl.ops.norm_act_conv import norm_act_conv

__all__ = ["ORDERS", "ConvNetwork"]

ORDERS = ("conv_norm_act", "conv_act_norm", "norm_act_conv")
"""Orders of a block's parts. ``norm_act_conv`` is a chain that is cut one place further on: its first block is the
convolution alone, and what comes out of its last convolution is neither normalised nor activated."""


class NormActConv2d(nn.Module):
    """Batch norm, activation and a 3x3 convolution, the order of He et al. 2016 (arXiv:1603.05027).

    Shapes: (N, channels, H, W) to the same.
    """

    def __init__(self, channels: int, *, activation: str, activation_param: float | None = None) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(channels)
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)
        self.activation = activation
        self.activation_param = activation_param

    def forward(self, input: Tensor) -> Tensor:
        norm, conv = self.norm, self.conv
        running_mean, running_var = tracked_statistics(norm)
        return norm_act_conv(
            input,
            conv.weight,
            conv.bias,
            padding=1,
            norm="batch",
            norm_weight=norm.weight,
            norm_bias=norm.bias,
            running_mean=running_mean,
            running_var=running_var,
            training=takes_batch_statistics(norm),
            momentum=count_batch(norm),
            eps=norm.eps,
            activation=self.activation,
            activation_param=self.activation_param,
        )


class ConvNetwork(nn.Module):
    """1 to 8 blocks of 3x3 convolution, norm and activation, then means over the positions and a classifier.

    Every block after the first maps ``width`` channels to ``width`` channels at the same resolution, so depth adds
    blocks and changes nothing else: no width, no resolution, no classifier. The first block maps the image's channels
    to ``width``; with ``stride=2`` it also halves the resolution, the only place where that happens unless
    ``downsamplings`` asks for more.

    Multiply-adds of a forward pass for one image, with an image of S x S pixels and R = S / stride:
    ``9 * width * R**2 * (in_channels + (depth - 1) * width) + width * num_classes``. For 32 x 32 colour images,
    stride 2 and width 32 that is 0.2 million for one block and 16.7 million for eight, or 4.5 TFLOP for an epoch of
    45,000 images, counting a backward pass as two forward passes.

    Args:
        in_channels: channels of the image.
        num_classes: length of the output.
        depth: number of blocks, 1 to 8.
        width: channels of every block.
        stride: of the first convolution, 1 or 2.
        activation: of every block, a name that :func:`fastdl.ops.conv_norm_act` knows.
        activation_param: of it, such as LeakyReLU's slope.
        norm: of every block: "batch", "group" or "none".
        num_groups: of a group norm.
        order: of the parts of every block, one of ``ORDERS``; ``norm_act_conv`` has batch norms alone.
        downsamplings: how many blocks after the first halve the resolution again, evenly spaced among them.
        pool: means are taken over each cell of a grid of pool x pool; 1 over the whole image.
        hidden: neurons of a layer with ReLU between the means and the logits; 0 for none.

    Shapes: (N, in_channels, H, W) to logits (N, num_classes).
    """

    def __init__(
        self,
        *,
        in_channels: int,
        num_classes: int,
        depth: int,
        width: int = 32,
        stride: int = 1,
        activation: str = "relu",
        activation_param: float | None = None,
        norm: str = "batch",
        num_groups: int | None = None,
        order: str = "conv_norm_act",
        downsamplings: int = 0,
        pool: int = 1,
        hidden: int = 0,
    ) -> None:
        super().__init__()
        if not 1 <= depth <= 8:
            raise ValueError(f"depth must be 1 to 8, got {depth}")
        if stride not in (1, 2):
            raise ValueError(f"stride must be 1 or 2, got {stride}")
        for name, value in (("in_channels", in_channels), ("num_classes", num_classes), ("width", width)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if order not in ORDERS:
            raise ValueError(f"order must be one of {', '.join(ORDERS)}, got {order!r}")
        if not 0 <= downsamplings < max(depth, 1):
            raise ValueError(f"downsamplings must be 0 to depth - 1 = {depth - 1}, got {downsamplings}")
        if pool < 1:
            raise ValueError(f"pool must be at least 1, got {pool}")
        if hidden < 0:
            raise ValueError(f"hidden must be 0 or more, got {hidden}")
        self.pool = pool
        channels = [in_channels, *[width] * depth]
        # Of the depth - 1 blocks after the first, those at whose end another share of them is complete.
        halving = {round(depth * (index + 1) / (downsamplings + 1)) for index in range(downsamplings)}
        strides = [stride, *(2 if index in halving else 1 for index in range(1, depth))]
        block: dict[str, Any] = {"activation": activation, "activation_param": activation_param}
        if order == "norm_act_conv":
            if norm != "batch" or downsamplings:
                raise ValueError(
                    f"order 'norm_act_conv' has batch norms and one resolution, got norm={norm!r} and "
                    f"downsamplings={downsamplings}"
                )
            first = ConvNormAct2d(in_channels, width, 3, stride, 1, norm="none", activation="identity")
            self.blocks = nn.Sequential(first, *(NormActConv2d(width, **block) for _ in range(depth - 1)))
        else:
            self.blocks = nn.Sequential(
                *(
                    ConvNormAct2d(
                        channels[index],
                        channels[index + 1],
                        3,
                        strides[index],
                        1,
                        norm=norm,
                        num_groups=num_groups,
                        order=order,
                        **block,
                    )
                    for index in range(depth)
                )
            )
        features = width * pool**2
        self.hidden = nn.Linear(features, hidden) if hidden else None
        self.classifier = nn.Linear(hidden or features, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        features = self.blocks(images)
        if self.pool == 1:
            means = features.mean(dim=(2, 3))
        else:
            height, width = features.shape[2:]
            if height % self.pool or width % self.pool:
                raise ValueError(f"features of {height} x {width} cannot be cut into {self.pool} x {self.pool} cells")
            # torch has no deterministic gradient of adaptive pooling on a GPU.
            means = F.avg_pool2d(features, (height // self.pool, width // self.pool)).flatten(1)
        if self.hidden is not None:
            means = F.relu(self.hidden(means))
        logits: Tensor = self.classifier(means)
        return logits
