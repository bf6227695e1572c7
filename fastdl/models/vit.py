"""The Vision Transformer (Dosovitskiy et al. 2020, An Image is Worth 16x16 Words, arXiv:2010.11929).

Read `fastdl.models.vit_embedding` for eq. 1, `fastdl.models.vit_encoder` for eqs. 2 and 3, and here for eq. 4 and how
they go together.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn

from fastdl.models.initialization import initialize_module
from fastdl.models.vit_embedding import ClassToken, LearnedPositions, PatchEmbedding, SinusoidalPositions
from fastdl.models.vit_encoder import Encoder
from fastdl.nn.dropout import Dropout
from fastdl.nn.layer_norm import LayerNorm

__all__ = ["SIZES", "VisionTransformer", "vision_transformer"]


class VisionTransformer(nn.Module):
    r"""Classifies an image by a transformer over its patches.

        y = LN(z_L^0)                                                                                  (eq. 4)

    The image becomes a sequence (eq. 1), the encoder works on it (eqs. 2 and 3), and the head reads the class token, or
    with ``pooling="mean"`` the mean of the patches, normalised (appendix D.3 finds them equally good).

    Args:
        image_size: height and width that position embeddings are learned for, or one number for both. Images of other
            sizes are taken too, if they are multiples of the patch size.
        patch_size: P; an image gives (H / P) * (W / P) patches.
        in_channels: C, channels of the image.
        num_classes: length of the logits.
        depth: L, number of encoder blocks.
        width: D, length of a token.
        num_heads: of each block's attention; it divides the width.
        mlp_width: hidden features of each block's MLP; 4 * width by default.
        pooling: "class" for the class token, "mean" for the mean of the patches; there is no class token then.
        positions: "learned" or "sinusoidal" position embeddings.
        dropout: after position embeddings, attention and both layers of each MLP (appendix B.1).
        attention_dropout: of attention's weights.
        stochastic_depth: probability of leaving out the last block's branches; earlier blocks proportionally less.
        qkv_bias: a bias in the projection to queries, keys and values.
        representation_size: features of a hidden layer with tanh in the head, which the paper has in pre-training only;
            None is the single linear layer of fine-tuning.
        norm_eps: of all LayerNorms.

    Shapes: images (N, C, H, W) to logits (N, num_classes).

    Raises ValueError for a size that does not fit.
    """

    def __init__(
        self,
        *,
        image_size: int | tuple[int, int],
        patch_size: int,
        num_classes: int,
        depth: int,
        width: int,
        num_heads: int,
        in_channels: int = 3,
        mlp_width: int | None = None,
        pooling: str = "class",
        positions: str = "learned",
        dropout: float = 0.0,
        attention_dropout: float = 0.0,
        stochastic_depth: float = 0.0,
        qkv_bias: bool = True,
        representation_size: int | None = None,
        norm_eps: float = 1e-6,
    ) -> None:
        super().__init__()
        height_and_width = (image_size, image_size) if isinstance(image_size, int) else tuple(image_size)
        counts = {"patch_size": patch_size, "num_classes": num_classes, "depth": depth, "width": width}
        for name, value in {**counts, "in_channels": in_channels}.items():
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if min(height_and_width) < 1 or any(size % patch_size for size in height_and_width):
            raise ValueError(f"image_size must be a multiple of the patch size {patch_size}, got {image_size}")
        if pooling not in ("class", "mean"):
            raise ValueError(f"pooling must be 'class' or 'mean', got {pooling!r}")
        if positions not in ("learned", "sinusoidal"):
            raise ValueError(f"positions must be 'learned' or 'sinusoidal', got {positions!r}")
        grid = height_and_width[0] // patch_size, height_and_width[1] // patch_size
        prefix = int(pooling == "class")
        self.pooling = pooling
        self.patch_embedding = PatchEmbedding(patch_size, in_channels, width)
        self.class_token = ClassToken(width) if pooling == "class" else None
        self.positions: LearnedPositions | SinusoidalPositions = (
            LearnedPositions(grid, width, prefix) if positions == "learned" else SinusoidalPositions(width, prefix)
        )
        self.dropout = Dropout(dropout)
        self.encoder = Encoder(
            depth,
            width,
            num_heads,
            4 * width if mlp_width is None else mlp_width,
            stochastic_depth=stochastic_depth,
            qkv_bias=qkv_bias,
            dropout=dropout,
            attention_dropout=attention_dropout,
            norm_eps=norm_eps,
        )
        self.norm = LayerNorm(width, eps=norm_eps)
        self.representation = (
            None if representation_size is None else nn.Sequential(nn.Linear(width, representation_size), nn.Tanh())
        )
        self.head = nn.Linear(width if representation_size is None else representation_size, num_classes)
        if not self.head.weight.is_meta:
            for module in self.modules():
                initialize_module(module)

    def embed(self, images: Tensor) -> Tensor:
        """z_0 (N, T, D), with T the patches and the class token, from images (N, C, H, W) (eq. 1)."""
        tokens = self.patch_embedding(images)
        if self.class_token is not None:
            tokens = self.class_token(tokens)
        embedded: Tensor = self.dropout(self.positions(tokens, self.patch_embedding.grid(images)))
        return embedded

    def encode(self, images: Tensor) -> Tensor:
        """LN(z_L) (N, T, D): all tokens, the class token first, as they leave the encoder (eqs. 2 to 4)."""
        tokens: Tensor = self.norm(self.encoder(self.embed(images)))
        return tokens

    def features(self, images: Tensor) -> Tensor:
        """What the head reads, (N, D), or (N, representation_size): y of eq. 4."""
        tokens = self.encode(images)
        pooled = tokens[:, 0] if self.class_token is not None else tokens.mean(dim=1)
        return pooled if self.representation is None else self.representation(pooled)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.head(self.features(images))
        return logits

    def no_weight_decay(self) -> Iterator[str]:
        """Names of parameters that are no weights of a product, beside norms and biases: decay would pull places and
        class token towards zero, where they mean nothing."""
        for name, _ in self.named_parameters():
            if name.startswith(("positions.", "class_token.")):
                yield name


# Blocks, width and heads: B, L and H are table 1 of the paper; S and Ti those of DeiT (arXiv:2012.12877, table 1). All
# have an MLP of four times the width.
SIZES = {
    "ti": {"depth": 12, "width": 192, "num_heads": 3},
    "s": {"depth": 12, "width": 384, "num_heads": 6},
    "b": {"depth": 12, "width": 768, "num_heads": 12},
    "l": {"depth": 24, "width": 1024, "num_heads": 16},
    "h": {"depth": 32, "width": 1280, "num_heads": 16},
}


def vision_transformer(name: str, **arguments: Any) -> VisionTransformer:
    """Build a model of the literature by its name.

    Args:
        name: ``vit_<size>_<patch size>`` with a size of ``SIZES``, as ``vit_b_16``.
        **arguments: of `VisionTransformer`; by default an image of 224 x 224 and 1,000 classes.

    Raises:
        ValueError: the name is not of this form.
    """
    family, _, rest = name.partition("_")
    size, _, patch = rest.partition("_")
    if family != "vit" or size not in SIZES or not patch.isdecimal() or int(patch) < 1:
        raise ValueError(f"name must be vit_<size>_<patch size> with a size of {', '.join(SIZES)}, got {name!r}")
    defaults: dict[str, Any] = {"image_size": 224, "num_classes": 1000, "patch_size": int(patch), **SIZES[size]}
    return VisionTransformer(**{**defaults, **arguments})
