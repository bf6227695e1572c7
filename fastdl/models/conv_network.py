"""A plain convolutional network of equal blocks, made to compare depths and activations with all else equal."""

from __future__ import annotations

from torch import Tensor, nn

from fastdl.nn import ConvNormAct2d

__all__ = ["ConvNetwork"]


class ConvNetwork(nn.Module):
    """1 to 8 blocks of 3x3 convolution, norm and activation, then the mean over all positions and a linear layer.

    Every block after the first maps ``width`` channels to ``width`` channels at the same resolution, so depth adds
    blocks and changes nothing else: no width, no resolution, no classifier. The first block maps the image's channels
    to ``width``; with ``stride=2`` it also halves the resolution, the only place where that happens.

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
        norm: of every block: "batch" or "none".

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
        norm: str = "batch",
    ) -> None:
        super().__init__()
        if not 1 <= depth <= 8:
            raise ValueError(f"depth must be 1 to 8, got {depth}")
        if stride not in (1, 2):
            raise ValueError(f"stride must be 1 or 2, got {stride}")
        for name, value in (("in_channels", in_channels), ("num_classes", num_classes), ("width", width)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        channels = [in_channels, *[width] * depth]
        self.blocks = nn.Sequential(
            *(
                ConvNormAct2d(
                    channels[index],
                    channels[index + 1],
                    3,
                    stride=stride if index == 0 else 1,
                    padding=1,
                    norm=norm,
                    activation=activation,
                )
                for index in range(depth)
            )
        )
        self.classifier = nn.Linear(width, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.classifier(self.blocks(images).mean(dim=(2, 3)))
        return logits
