"""Residual networks (He et al. 2015, Deep Residual Learning for Image Recognition, arXiv:1512.03385)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from fastdl.models.initialization import initialize_module
from fastdl.nn import BatchNorm2d
from fastdl.nn.conv_norm_sequence import conv_norm_sequence

__all__ = ["SIZES", "BasicBlock", "Bottleneck", "ResNet", "resnet"]


class BasicBlock(nn.Module):
    r"""Two 3x3 convolutions beside a shortcut (figure 2, and figure 5 on the left).

        y = relu(BN(W_2 relu(BN(W_1 x))) + x)                                                          (eqs. 1 and 2)

    Where the resolution or the width changes, the shortcut is a 1x1 convolution with its own BN (option B of section
    3.3). In training the block keeps for backward its input and what the two convolutions put out; eager torch keeps
    the activated tensor between them as well.
    """

    expansion = 1

    def __init__(self, in_channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, width, 3, stride, 1, bias=False)
        self.bn1 = BatchNorm2d(width, activation="relu")
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = BatchNorm2d(width, activation="relu")
        self.downsample = projection(in_channels, width, stride)

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        return conv_norm_sequence(x, self.conv1, self.bn1, self.conv2, self.bn2, residual=shortcut)


class Bottleneck(nn.Module):
    r"""1x1, 3x3 and 1x1 convolutions beside a shortcut (figure 5 on the right), the width four times as large outside.

    The stride is the 3x3 convolution's, as in all implementations since Facebook's (Goyal et al. 2017,
    arXiv:1706.02677, section 5.1); the paper has it in the first 1x1.
    """

    expansion = 4

    def __init__(self, in_channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, width, 1, bias=False)
        self.bn1 = BatchNorm2d(width, activation="relu")
        self.conv2 = nn.Conv2d(width, width, 3, stride, 1, bias=False)
        self.bn2 = BatchNorm2d(width, activation="relu")
        self.conv3 = nn.Conv2d(width, self.expansion * width, 1, bias=False)
        self.bn3 = BatchNorm2d(self.expansion * width, activation="relu")
        self.downsample = projection(in_channels, self.expansion * width, stride)

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        branch = (self.conv1, self.bn1, self.conv2, self.bn2, self.conv3, self.bn3)
        return conv_norm_sequence(x, *branch, residual=shortcut)


class Projection(nn.Sequential):
    """A 1x1 convolution and its norm, under the names of a plain nn.Sequential."""

    def forward(self, x: Tensor) -> Tensor:
        return conv_norm_sequence(x, *self)


def projection(in_channels: int, out_channels: int, stride: int) -> Projection | None:
    """The shortcut where it cannot be the identity."""
    if stride == 1 and in_channels == out_channels:
        return None
    return Projection(nn.Conv2d(in_channels, out_channels, 1, stride, bias=False), BatchNorm2d(out_channels))


Block = type[BasicBlock] | type[Bottleneck]

SIZES: dict[str, tuple[Block, tuple[int, int, int, int]]] = {
    "resnet18": (BasicBlock, (2, 2, 2, 2)),
    "resnet34": (BasicBlock, (3, 4, 6, 3)),
    "resnet50": (Bottleneck, (3, 4, 6, 3)),
    "resnet101": (Bottleneck, (3, 4, 23, 3)),
    "resnet152": (Bottleneck, (3, 8, 36, 3)),
}
"""Table 1 of the paper: the kind of block, and how many of them at each of the four resolutions."""


class ResNet(nn.Module):
    """Classifies an image by residual blocks at four resolutions (table 1), the mean over all positions and a layer.

    Runs in channels-last memory, whatever the layout of the images. Parameters carry torchvision's names, so that a
    state_dict of ``torchvision.models.resnet18`` and its like loads unchanged.

    Args:
        block: `BasicBlock` or `Bottleneck`.
        depths: blocks at each resolution.
        num_classes: length of the logits.
        in_channels: of the image.
        stem: "imagenet" (7x7 convolution of stride 2, then 3x3 maxima of stride 2) or "cifar" (3x3 of stride 1, as
            section 4.2 has it for images of 32 x 32).
        zero_init_residual: begin with each block as its shortcut, by a last norm of weight 0 (Goyal et al. 2017,
            section 5.1).

    Shapes: images (N, in_channels, H, W) to logits (N, num_classes).

    Raises ValueError for an unknown stem, and for a size below 1.
    """

    def __init__(
        self,
        block: Block,
        depths: tuple[int, int, int, int],
        *,
        num_classes: int = 1000,
        in_channels: int = 3,
        stem: str = "imagenet",
        zero_init_residual: bool = False,
    ) -> None:
        super().__init__()
        if stem not in ("imagenet", "cifar"):
            raise ValueError(f"stem must be imagenet or cifar, got {stem!r}")
        for name, value in (("num_classes", num_classes), ("in_channels", in_channels), ("depths", min(depths))):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        kernel, stride = (7, 2) if stem == "imagenet" else (3, 1)
        self.conv1 = nn.Conv2d(in_channels, 64, kernel, stride, kernel // 2, bias=False)
        self.bn1 = BatchNorm2d(64, activation="relu")
        self.maxpool = nn.MaxPool2d(3, 2, 1) if stem == "imagenet" else nn.Identity()
        outside = [64, *(block.expansion * width for width in (64, 128, 256, 512))]
        self.layer1 = blocks_at_one_resolution(block, depths[0], outside[0], 64, 1)
        self.layer2 = blocks_at_one_resolution(block, depths[1], outside[1], 128, 2)
        self.layer3 = blocks_at_one_resolution(block, depths[2], outside[2], 256, 2)
        self.layer4 = blocks_at_one_resolution(block, depths[3], outside[3], 512, 2)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(outside[4], num_classes)
        for module in self.modules():
            initialize_module(module)
        if zero_init_residual:
            for module in self.modules():
                if isinstance(module, (BasicBlock, Bottleneck)):
                    nn.init.zeros_((module.bn3 if isinstance(module, Bottleneck) else module.bn2).weight)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(self, images: Tensor) -> Tensor:
        x = images.contiguous(memory_format=torch.channels_last)
        x = self.maxpool(conv_norm_sequence(x, self.conv1, self.bn1))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        logits: Tensor = self.fc(self.avgpool(x).flatten(1))
        return logits


def blocks_at_one_resolution(block: Block, depth: int, in_channels: int, width: int, stride: int) -> nn.Sequential:
    """``depth`` blocks, the first of which changes the width and takes the stride."""
    inner = width * block.expansion
    return nn.Sequential(
        block(in_channels, width, stride), *(block(inner, width, 1) for _ in range(depth - 1))
    )  # fmt: skip


def resnet(name: str, **arguments: Any) -> ResNet:
    """Build a residual network of the paper by its name.

    Args:
        name: one of ``SIZES``, as ``resnet18``.
        **arguments: of `ResNet`.

    Raises:
        ValueError: the name is unknown, or an argument is refused.
    """
    if name not in SIZES:
        raise ValueError(f"name must be one of {', '.join(SIZES)}, got {name!r}")
    return ResNet(*SIZES[name], **arguments)
