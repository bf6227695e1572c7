"""From an image to a sequence of tokens: the first equation of the Vision Transformer (arXiv:2010.11929, section 3.1).

    z_0 = [x_class; x_p^1 E; x_p^2 E; ...; x_p^N E] + E_pos                                            (eq. 1)

x_p^i is the i-th patch of P x P pixels, written as one row of P * P * C numbers, and E a matrix that maps it to D.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = [
    "ClassToken",
    "LearnedPositions",
    "PatchEmbedding",
    "PatchProjection",
    "SinusoidalPositions",
    "resample_positions",
]


class PatchProjection(nn.Conv2d):
    """E of eq. 1, a linear map of patches: a convolution whose windows do not overlap."""

    @torch.no_grad()
    def initialize_parameters(self, generator: torch.Generator | None = None) -> None:
        """As the matrix that it is, like every linear layer (Glorot and Bengio 2010, eq. 16): no ReLU follows."""
        matrix = torch.empty(self.weight.shape, device="cpu").flatten(1)
        self.weight.copy_(nn.init.xavier_uniform_(matrix, generator=generator).view(self.weight.shape))
        if self.bias is not None:
            self.bias.zero_()


class PatchEmbedding(nn.Module):
    """Cuts an image into patches and maps each to a vector: x_p^i E of eq. 1.

    A convolution whose kernel is as large as its stride does both: each of its windows is one patch, and its weight is
    E, with its rows written as squares of pixels.

    Args:
        patch_size: P, height and width of a patch in pixels.
        in_channels: C, channels of the image.
        width: D, length of a token.

    Shapes: images (N, C, H, W), with H and W multiples of P, to tokens (N, H/P * W/P, D), row by row.
    """

    def __init__(self, patch_size: int, in_channels: int, width: int) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.projection = PatchProjection(in_channels, width, kernel_size=patch_size, stride=patch_size)

    def grid(self, images: Tensor) -> tuple[int, int]:
        """Patches in a column and in a row; raises ValueError where the image does not divide into whole ones."""
        height, width = images.shape[-2:]
        if height % self.patch_size or width % self.patch_size:
            raise ValueError(
                f"images must have a height and a width that are multiples of the patch size {self.patch_size}; got "
                f"{height} x {width}"
            )
        return height // self.patch_size, width // self.patch_size

    def forward(self, images: Tensor) -> Tensor:
        self.grid(images)
        patches: Tensor = self.projection(images)  # (N, D, H/P, W/P)
        return patches.flatten(2).transpose(1, 2)


class ClassToken(nn.Module):
    """Puts a learned token before all others: x_class of eq. 1.

    It belongs to no place of the image. What the encoder makes of it is what the classifier reads (eq. 4).

    Shapes: (N, L, D) to (N, 1 + L, D).
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.zeros(width))

    def initialize_parameters(self, generator: torch.Generator | None = None) -> None:
        """Zero, as the paper's code begins."""
        nn.init.zeros_(self.token)

    def forward(self, tokens: Tensor) -> Tensor:
        token = self.token.to(tokens.dtype).expand(tokens.shape[0], 1, -1)
        return torch.cat([token, tokens], dim=1)


class LearnedPositions(nn.Module):
    """Adds to each token a learned vector of its place: E_pos of eq. 1.

    Attention by itself sees a set of tokens, without an order; this is how it comes to know which patch lies where. For
    an image of another size the vectors of the patches are interpolated as an image (section 3.2 of the paper).

    Args:
        grid: patches in a column and in a row at the size that the table is learned for.
        width: D.
        prefix: tokens before the patches, 1 with a class token, else 0.

    Shapes: tokens (N, prefix + L, D) and the grid that L patches form, to the same.
    """

    def __init__(self, grid: tuple[int, int], width: int, prefix: int) -> None:
        super().__init__()
        self.grid = grid
        self.prefix = prefix
        self.table = nn.Parameter(torch.empty(prefix + grid[0] * grid[1], width))
        self.initialize_parameters()

    def initialize_parameters(self, generator: torch.Generator | None = None) -> None:
        """Normal with deviation 0.02, as the paper's code begins."""
        nn.init.normal_(self.table, std=0.02, generator=generator)

    def forward(self, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        return tokens + resample_positions(self.table, self.grid, grid, self.prefix)


class SinusoidalPositions(nn.Module):
    """Adds to each token sines and cosines of its row and column, where nothing is learned.

    A quarter of the features each is sin(w x), cos(w x), sin(w y) and cos(w y), with wavelengths that grow
    geometrically from 2 pi to 10,000 * 2 pi patches: Vaswani et al. 2017 (arXiv:1706.03762, section 3.5) in two
    dimensions, as Beyer et al. 2022 (arXiv:2205.01580) use it. Any size of image has its own; nothing is interpolated.

    Args:
        width: D, a multiple of 4.
        prefix: tokens before the patches, which get zeros.

    Shapes: tokens (N, prefix + L, D) and the grid that L patches form, to the same.
    """

    def __init__(self, width: int, prefix: int) -> None:
        super().__init__()
        if width % 4:
            raise ValueError(f"width must be a multiple of 4 for sinusoidal positions; got {width}")
        self.width = width
        self.prefix = prefix

    def table(self, grid: tuple[int, int], device: torch.device | None = None) -> Tensor:
        """The vectors of all places, (prefix + L, D), in float32."""
        quarter = self.width // 4
        frequencies = 10_000.0 ** -(torch.arange(quarter, device=device) / max(quarter - 1, 1))
        rows, columns = torch.meshgrid(
            torch.arange(grid[0], device=device), torch.arange(grid[1], device=device), indexing="ij"
        )
        x, y = (place.flatten().unsqueeze(1) * frequencies for place in (columns, rows))
        patches = torch.cat([x.sin(), x.cos(), y.sin(), y.cos()], dim=1)
        return F.pad(patches, (0, 0, self.prefix, 0))

    def forward(self, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        return tokens + self.table(grid, tokens.device).to(tokens.dtype)


def resample_positions(table: Tensor, old: tuple[int, int], new: tuple[int, int], prefix: int) -> Tensor:
    """Interpolate the patches' rows of a position table (prefix + h * w, D) from one grid to another.

    Bicubic, with a low-pass filter where the grid shrinks, so that it does not pick single rows out of a fine table.
    """
    if old == new:
        return table
    before, patches = table[:prefix], table[prefix:]
    image = patches.unflatten(0, old).permute(2, 0, 1).unsqueeze(0)  # (1, D, h, w)
    resized = F.interpolate(image.float(), new, mode="bicubic", antialias=True)
    return torch.cat([before, resized.squeeze(0).flatten(1).t().to(table.dtype)])
