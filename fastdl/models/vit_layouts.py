"""How other libraries name and arrange the weights of a Vision Transformer, as tables of names.

Each table maps a layer of ours to theirs. What one calls ``blocks.3.norm1.weight`` the other calls
``encoder.layers.encoder_layer_3.ln_1.weight``; it is the same LN of eq. 2.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

__all__ = ["LAYOUTS", "Layout", "recognize_layout"]

Kernel = Callable[[str, Tensor], Tensor]


def _as_it_is(layer: str, value: Tensor) -> Tensor:
    return value


def _from_flax(layer: str, value: Tensor) -> Tensor:
    """Flax keeps (rows, columns, in, out) for a convolution, (in, out) for a dense layer, and heads as a dimension."""
    if layer == "patch_embedding.projection" and value.ndim == 4:  # (P, P, C, D)
        return value.permute(3, 2, 0, 1)
    if layer.endswith("attention.query_key_value"):  # one of three: (D, H, E), or (H, E) for the bias
        return value.flatten(1).t() if value.ndim == 3 else value.flatten()
    if layer.endswith("attention.output") and value.ndim == 3:  # (H, E, D)
        return value.flatten(0, 1).t()
    return value.t() if value.ndim == 2 else value


@dataclass(frozen=True)
class Layout:
    """The names that one library gives.

    Attributes:
        library: its name.
        marker: pattern of a key that every file of this layout holds, and no other's does.
        layers: layers that occur once: ours to theirs. A tuple of three is one layer each for query, key and value.
        block_layers: layers of each encoder block, likewise.
        block: name of block number ``{}``.
        weight, bias: how the parameters of a layer are attached to its name, weights of norms in ``norm_weight``.
        renames: pattern and replacement, applied to a file's keys first: names that have changed between versions.
        arrange: turns a parameter of our layer from their arrangement to ours.
    """

    library: str
    marker: str
    layers: Mapping[str, str]
    block_layers: Mapping[str, str | tuple[str, str, str]]
    block: str
    weight: str = ".weight"
    norm_weight: str = ".weight"
    bias: str = ".bias"
    renames: tuple[tuple[str, str], ...] = field(default=())
    arrange: Kernel = _as_it_is

    def sources(self, name: str) -> tuple[str, ...]:
        """Their keys, one or three, of our parameter ``name``."""
        layer, parameter = name.rsplit(".", 1)
        if (block := re.fullmatch(r"encoder\.(\d+)\.(.+)", layer)) is None:
            found: str | tuple[str, ...] = self.layers[layer if parameter in ("weight", "bias") else name]
            prefix = ""
        else:
            found, prefix = self.block_layers[block[2]], self.block.format(block[1])
        suffix = {"weight": self.norm_weight if layer.endswith("norm") else self.weight, "bias": self.bias}
        return tuple(
            prefix + theirs + suffix.get(parameter, "") for theirs in ((found,) if isinstance(found, str) else found)
        )

    def renamed(self, key: str) -> str:
        """A key of a file under its present name."""
        for pattern, replacement in self.renames:
            key = re.sub(pattern, replacement, key)
        return key

    def assemble(self, name: str, values: list[Tensor]) -> Tensor:
        """Our parameter ``name`` from theirs."""
        arranged = [self.arrange(name.rsplit(".", 1)[0], value) for value in values]
        whole = arranged[0] if len(arranged) == 1 else torch.cat(arranged)
        return whole.flatten() if name == "class_token.token" else whole


_FASTDL = Layout(
    library="fastdl",
    marker=r"patch_embedding\.projection\.weight",
    layers={
        "patch_embedding.projection": "patch_embedding.projection",
        "class_token.token": "class_token.token",
        "positions.table": "positions.table",
        "norm": "norm",
        "representation.0": "representation.0",
        "head": "head",
    },
    block="encoder.{}.",
    block_layers={
        "attention_norm": "attention_norm",
        "attention.query_key_value": "attention.query_key_value",
        "attention.output": "attention.output",
        "mlp_norm": "mlp_norm",
        "mlp.expand": "mlp.expand",
        "mlp.contract": "mlp.contract",
    },
)

_TIMM = Layout(
    library="timm",
    marker=r"patch_embed\.proj\.weight",
    layers={
        "patch_embedding.projection": "patch_embed.proj",
        "class_token.token": "cls_token",
        "positions.table": "pos_embed",
        "norm": "norm",
        "representation.0": "pre_logits.fc",
        "head": "head",
    },
    block="blocks.{}.",
    block_layers={
        "attention_norm": "norm1",
        "attention.query_key_value": "attn.qkv",
        "attention.output": "attn.proj",
        "mlp_norm": "norm2",
        "mlp.expand": "mlp.fc1",
        "mlp.contract": "mlp.fc2",
    },
)

_TORCHVISION = Layout(
    library="torchvision",
    marker=r"conv_proj\.weight",
    layers={
        "patch_embedding.projection": "conv_proj",
        "class_token.token": "class_token",
        "positions.table": "encoder.pos_embedding",
        "norm": "encoder.ln",
        "representation.0": "heads.pre_logits",
        "head": "heads.head",
    },
    block="encoder.layers.encoder_layer_{}.",
    block_layers={
        "attention_norm": "ln_1",
        "attention.query_key_value": "self_attention.in_proj",
        "attention.output": "self_attention.out_proj",
        "mlp_norm": "ln_2",
        "mlp.expand": "mlp.0",
        "mlp.contract": "mlp.3",
    },
    renames=(
        (r"\.in_proj_(weight|bias)$", r".in_proj.\1"),  # torch.nn.MultiheadAttention's own parameters
        (r"\.mlp\.linear_1\.", ".mlp.0."),  # the files that torchvision offers are older than its present names
        (r"\.mlp\.linear_2\.", ".mlp.3."),
    ),
)

_TRANSFORMERS = Layout(
    library="transformers",
    marker=r"(vit\.)?embeddings\.patch_embeddings\.projection\.weight",
    layers={
        "patch_embedding.projection": "embeddings.patch_embeddings.projection",
        "class_token.token": "embeddings.cls_token",
        "positions.table": "embeddings.position_embeddings",
        "norm": "layernorm",
        "representation.0": "pooler.dense",
        "head": "classifier",
    },
    block="layers.{}.",
    block_layers={
        "attention_norm": "layernorm_before",
        "attention.query_key_value": ("attention.q_proj", "attention.k_proj", "attention.v_proj"),
        "attention.output": "attention.o_proj",
        "mlp_norm": "layernorm_after",
        "mlp.expand": "mlp.fc1",
        "mlp.contract": "mlp.fc2",
    },
    renames=(
        (r"^vit\.", ""),  # of the model with a classifier around it
        # Names up to version 4, which most files have.
        (r"^encoder\.layer\.", "layers."),
        (r"\.attention\.attention\.query\.", ".attention.q_proj."),
        (r"\.attention\.attention\.key\.", ".attention.k_proj."),
        (r"\.attention\.attention\.value\.", ".attention.v_proj."),
        (r"\.attention\.output\.dense\.", ".attention.o_proj."),
        (r"\.intermediate\.dense\.", ".mlp.fc1."),
        (r"^(layers\.\d+)\.output\.dense\.", r"\1.mlp.fc2."),
    ),
)

_ATTENTION = "MultiHeadDotProductAttention_1/"
_JAX = Layout(
    library="jax",
    marker=r"embedding/kernel",
    layers={
        "patch_embedding.projection": "embedding",
        "class_token.token": "cls",
        "positions.table": "Transformer/posembed_input/pos_embedding",
        "norm": "Transformer/encoder_norm",
        "representation.0": "pre_logits",
        "head": "head",
    },
    block="Transformer/encoderblock_{}/",
    block_layers={
        "attention_norm": "LayerNorm_0",
        "attention.query_key_value": (_ATTENTION + "query", _ATTENTION + "key", _ATTENTION + "value"),
        "attention.output": _ATTENTION + "out",
        "mlp_norm": "LayerNorm_2",
        "mlp.expand": "MlpBlock_3/Dense_0",
        "mlp.contract": "MlpBlock_3/Dense_1",
    },
    weight="/kernel",
    norm_weight="/scale",
    bias="/bias",
    arrange=_from_flax,
)

LAYOUTS = {layout.library: layout for layout in (_FASTDL, _TIMM, _TORCHVISION, _TRANSFORMERS, _JAX)}
"""Layouts by the name of their library; "jax" is that of the paper's own ``.npz`` files, from Flax."""


def recognize_layout(keys: list[str]) -> Layout:
    """The layout whose marker is among the keys; raises ValueError where there is none."""
    for layout in LAYOUTS.values():
        if any(re.fullmatch(layout.marker, key) for key in keys):
            return layout
    raise ValueError(
        f"weights must be those of a Vision Transformer of {', '.join(LAYOUTS)}; got the keys "
        f"{', '.join(sorted(keys)[:4])}{', ...' if len(keys) > 4 else ''}"
    )
