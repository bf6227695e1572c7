"""The experiments' network of equal blocks (`fastdl.models.conv_network`) of torch's own modules, to measure beside."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

# Of the experiments on two CPU cores (protocol ``cpu``), at its full depth.
ARGUMENTS: dict[str, Any] = {"depth": 8, "width": 32, "stride": 2, "pool": 4}


class _Block(nn.Module):
    """Convolution, batch norm and ReLU; the names of its parts are those of `fastdl.nn.ConvNormAct2d`."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, 3, stride, 1, bias=False)
        self.norm = nn.BatchNorm2d(out_channels)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, input: Tensor) -> Tensor:
        output: Tensor = self.relu(self.norm(self.conv(input)))
        return output


class PlainConvNetwork(nn.Module):
    """The same parameters by the same names as a `ConvNetwork` of `ARGUMENTS`."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        depth, width, self.pool = ARGUMENTS["depth"], ARGUMENTS["width"], ARGUMENTS["pool"]
        self.blocks = nn.Sequential(
            *(_Block(width if index else 3, width, 1 if index else ARGUMENTS["stride"]) for index in range(depth))
        )
        self.classifier = nn.Linear(width * self.pool**2, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        features = self.blocks(images)
        logits: Tensor = self.classifier(F.avg_pool2d(features, features.shape[-1] // self.pool).flatten(1))
        return logits
