"""Residual networks of torch's own modules, named as torchvision names them: what ours are compared with."""

from __future__ import annotations

from torch import Tensor, nn


class PlainBlock(nn.Module):
    """torchvision's BasicBlock, or with ``expansion=4`` its Bottleneck."""

    def __init__(self, in_channels: int, width: int, stride: int, expansion: int) -> None:
        super().__init__()
        outside = width * expansion
        if expansion == 1:
            shapes = [(in_channels, width, 3, stride), (width, width, 3, 1)]
        else:
            shapes = [(in_channels, width, 1, 1), (width, width, 3, stride), (width, outside, 1, 1)]
        for i, (before, after, kernel, step) in enumerate(shapes, 1):
            self.add_module(f"conv{i}", nn.Conv2d(before, after, kernel, step, kernel // 2, bias=False))
            self.add_module(f"bn{i}", nn.BatchNorm2d(after))
        self.relu = nn.ReLU(inplace=True)
        self.count = len(shapes)
        self.downsample = None
        if stride != 1 or in_channels != outside:
            self.downsample = nn.Sequential(
                nn.Conv2d(in_channels, outside, 1, stride, bias=False), nn.BatchNorm2d(outside)
            )

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        for i in range(1, self.count + 1):
            x = getattr(self, f"bn{i}")(getattr(self, f"conv{i}")(x))
            if i < self.count:
                x = self.relu(x)
        x += shortcut
        output: Tensor = self.relu(x)
        return output


class PlainResNet(nn.Module):
    """torchvision's ResNet; with ``stem="cifar"`` its first convolution is 3x3 of stride 1, and nothing is pooled."""

    def __init__(self, expansion: int, depths: tuple[int, ...], num_classes: int, stem: str) -> None:
        super().__init__()
        large = stem == "imagenet"
        self.conv1 = nn.Conv2d(3, 64, 7 if large else 3, 2 if large else 1, 3 if large else 1, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, 1) if large else nn.Identity()
        channels = 64
        for i, depth in enumerate(depths):
            layers = []
            for j in range(depth):
                layers.append(PlainBlock(channels, 64 << i, 2 if i and not j else 1, expansion))
                channels = (64 << i) * expansion
            self.add_module(f"layer{i + 1}", nn.Sequential(*layers))
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(channels, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        for i in range(1, 5):
            x = getattr(self, f"layer{i}")(x)
        logits: Tensor = self.fc(self.avgpool(x).flatten(1))
        return logits
