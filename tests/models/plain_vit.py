"""Vision Transformers in plain torch, with the parameters named and arranged as other libraries have them.

Written from the libraries' documented names and independent of `fastdl.models`: each computes its own logits, so that a
converted state_dict can be held against them.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

IMAGE, PATCH, WIDTH, HEADS, DEPTH, HIDDEN, CLASSES = 16, 4, 24, 3, 2, 40, 7
TOKENS = 1 + (IMAGE // PATCH) ** 2
SIZES: dict[str, Any] = {
    "image_size": IMAGE, "patch_size": PATCH, "width": WIDTH, "num_heads": HEADS, "depth": DEPTH, "mlp_width": HIDDEN,
    "num_classes": CLASSES,
}  # fmt: skip


def random_parameters(module: nn.Module, seed: int = 0) -> nn.Module:
    """All parameters random, in float64: biases of zero and norms of one hide what was forgotten or exchanged."""
    generator = torch.Generator().manual_seed(seed)
    module.double().eval()
    with torch.no_grad():
        for value in module.parameters():
            value.copy_(torch.randn(value.shape, generator=generator) * 0.3)
    return module


def parameter(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.zeros(shape))


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """(N, T, D) each, D taken apart into heads."""
    q, k, v = (x.reshape(*x.shape[:2], HEADS, -1).transpose(1, 2) for x in (q, k, v))
    weights = (q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5).softmax(-1)
    return (weights @ v).transpose(1, 2).flatten(2)


class Timm(nn.Module):
    """``timm.create_model("vit_base_patch16_224")``, smaller."""

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm1 = nn.LayerNorm(WIDTH, eps=1e-6)
            self.attn = nn.ModuleDict({"qkv": nn.Linear(WIDTH, 3 * WIDTH), "proj": nn.Linear(WIDTH, WIDTH)})
            self.norm2 = nn.LayerNorm(WIDTH, eps=1e-6)
            self.mlp = nn.ModuleDict({"fc1": nn.Linear(WIDTH, HIDDEN), "fc2": nn.Linear(HIDDEN, WIDTH)})

        def forward(self, x: Tensor) -> Tensor:
            x = x + self.attn["proj"](attend(*self.attn["qkv"](self.norm1(x)).chunk(3, -1)))
            return x + self.mlp["fc2"](F.gelu(self.mlp["fc1"](self.norm2(x))))

    def __init__(self) -> None:
        super().__init__()
        self.cls_token, self.pos_embed = parameter(1, 1, WIDTH), parameter(1, TOKENS, WIDTH)
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv2d(3, WIDTH, PATCH, PATCH)})
        self.blocks = nn.Sequential(*(self.Block() for _ in range(DEPTH)))
        self.norm = nn.LayerNorm(WIDTH, eps=1e-6)
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        x = self.patch_embed["proj"](images).flatten(2).mT
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], 1) + self.pos_embed
        return self.head(self.norm(self.blocks(x))[:, 0])


class Torchvision(nn.Module):
    """``torchvision.models.vit_b_16``, smaller; with ``representation`` as its ``representation_size``."""

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.ln_1 = nn.LayerNorm(WIDTH, eps=1e-6)
            self.self_attention = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)
            self.ln_2 = nn.LayerNorm(WIDTH, eps=1e-6)
            self.mlp = nn.Sequential(
                nn.Linear(WIDTH, HIDDEN), nn.GELU(), nn.Identity(), nn.Linear(HIDDEN, WIDTH), nn.Identity()
            )

        def forward(self, x: Tensor) -> Tensor:
            y = self.ln_1(x)
            x = x + self.self_attention(y, y, y, need_weights=False)[0]
            return x + self.mlp(self.ln_2(x))

    class Encoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.pos_embedding = parameter(1, TOKENS, WIDTH)
            blocks = {f"encoder_layer_{number}": Torchvision.Block() for number in range(DEPTH)}
            self.layers = nn.Sequential()
            for name, block in blocks.items():
                self.layers.add_module(name, block)
            self.ln = nn.LayerNorm(WIDTH, eps=1e-6)

        def forward(self, x: Tensor) -> Tensor:
            return self.ln(self.layers(x + self.pos_embedding))

    def __init__(self, representation: int | None = None) -> None:
        super().__init__()
        self.class_token = parameter(1, 1, WIDTH)
        self.conv_proj = nn.Conv2d(3, WIDTH, PATCH, PATCH)
        self.encoder = self.Encoder()
        self.heads = nn.Sequential()
        if representation is not None:
            self.heads.add_module("pre_logits", nn.Linear(WIDTH, representation))
            self.heads.add_module("act", nn.Tanh())
        self.heads.add_module("head", nn.Linear(representation or WIDTH, CLASSES))

    def forward(self, images: Tensor) -> Tensor:
        x = self.conv_proj(images).flatten(2).mT
        return self.heads(self.encoder(torch.cat([self.class_token.expand(len(x), -1, -1), x], 1))[:, 0])


class Transformers(nn.Module):
    """``transformers.ViTForImageClassification``, smaller, under the names of version 4 (files) or 5 (modules)."""

    def __init__(self, version: int) -> None:
        super().__init__()
        self.version = version
        vit = self.vit = nn.Module()
        vit.embeddings = nn.Module()
        vit.embeddings.cls_token, vit.embeddings.position_embeddings = (
            parameter(1, 1, WIDTH),
            parameter(1, TOKENS, WIDTH),
        )
        vit.embeddings.patch_embeddings = nn.ModuleDict({"projection": nn.Conv2d(3, WIDTH, PATCH, PATCH)})
        blocks = nn.ModuleList(self._block() for _ in range(DEPTH))
        if version == 4:
            vit.encoder = nn.ModuleDict({"layer": blocks})
        else:
            vit.layers = blocks
        vit.layernorm = nn.LayerNorm(WIDTH, eps=1e-12)
        self.classifier = nn.Linear(WIDTH, CLASSES)

    def _block(self) -> nn.Module:
        block = nn.Module()
        block.layernorm_before, block.layernorm_after = (nn.LayerNorm(WIDTH, eps=1e-12) for _ in range(2))
        q, k, v, out = (nn.Linear(WIDTH, WIDTH) for _ in range(4))
        expand, contract = nn.Linear(WIDTH, HIDDEN), nn.Linear(HIDDEN, WIDTH)
        if self.version == 4:
            inner = nn.ModuleDict({"query": q, "key": k, "value": v})
            block.attention = nn.ModuleDict({"attention": inner, "output": nn.ModuleDict({"dense": out})})
            block.intermediate = nn.ModuleDict({"dense": expand})
            block.output = nn.ModuleDict({"dense": contract})
        else:
            block.attention = nn.ModuleDict({"q_proj": q, "k_proj": k, "v_proj": v, "o_proj": out})
            block.mlp = nn.ModuleDict({"fc1": expand, "fc2": contract})
        block.parts = lambda: (q, k, v, out, expand, contract)
        return block

    def forward(self, images: Tensor) -> Tensor:
        vit = self.vit
        x = vit.embeddings.patch_embeddings["projection"](images).flatten(2).mT
        x = torch.cat([vit.embeddings.cls_token.expand(len(x), -1, -1), x], 1) + vit.embeddings.position_embeddings
        for block in vit.encoder["layer"] if self.version == 4 else vit.layers:
            q, k, v, out, expand, contract = block.parts()
            y = block.layernorm_before(x)
            x = x + out(attend(q(y), k(y), v(y)))
            x = x + contract(F.gelu(expand(block.layernorm_after(x))))
        return self.classifier(vit.layernorm(x)[:, 0])


class Jax:
    """The paper's own code, in the arrangement of its ``.npz`` files: Flax's dense layers over several dimensions."""

    def __init__(self, representation: int | None = None) -> None:
        generator = torch.Generator().manual_seed(0)
        D, E = WIDTH, WIDTH // HEADS
        shapes: dict[str, tuple[int, ...]] = {
            "embedding/kernel": (PATCH, PATCH, 3, D),
            "embedding/bias": (D,),
            "cls": (1, 1, D),
            "Transformer/posembed_input/pos_embedding": (1, TOKENS, D),
            "Transformer/encoder_norm/scale": (D,),
            "Transformer/encoder_norm/bias": (D,),
            "head/kernel": (representation or D, CLASSES),
            "head/bias": (CLASSES,),
        }
        if representation is not None:
            shapes |= {"pre_logits/kernel": (D, representation), "pre_logits/bias": (representation,)}
        for number in range(DEPTH):
            block = f"Transformer/encoderblock_{number}/"
            attention, mlp = block + "MultiHeadDotProductAttention_1/", block + "MlpBlock_3/"
            for norm in ("LayerNorm_0", "LayerNorm_2"):
                shapes |= {f"{block}{norm}/scale": (D,), f"{block}{norm}/bias": (D,)}
            for part in ("query", "key", "value"):
                shapes |= {f"{attention}{part}/kernel": (D, HEADS, E), f"{attention}{part}/bias": (HEADS, E)}
            shapes |= {f"{attention}out/kernel": (HEADS, E, D), f"{attention}out/bias": (D,)}
            shapes |= {f"{mlp}Dense_0/kernel": (D, HIDDEN), f"{mlp}Dense_0/bias": (HIDDEN,)}
            shapes |= {f"{mlp}Dense_1/kernel": (HIDDEN, D), f"{mlp}Dense_1/bias": (D,)}
        self.arrays = {
            name: torch.randn(shape, generator=generator, dtype=torch.float64) * 0.3 for name, shape in shapes.items()
        }
        self.representation = representation

    def __call__(self, images: Tensor) -> Tensor:
        a = self.arrays
        side = IMAGE // PATCH
        patches = images.permute(0, 2, 3, 1).reshape(-1, side, PATCH, side, PATCH, 3)
        x = torch.einsum("nhpwqc,pqcd->nhwd", patches, a["embedding/kernel"]) + a["embedding/bias"]
        x = torch.cat([a["cls"].expand(len(x), -1, -1), x.flatten(1, 2)], 1)
        x = x + a["Transformer/posembed_input/pos_embedding"]
        for number in range(DEPTH):
            block = f"Transformer/encoderblock_{number}/"
            attention, mlp = block + "MultiHeadDotProductAttention_1/", block + "MlpBlock_3/"
            y = self.norm(block + "LayerNorm_0", x)
            q, k, v = (
                torch.einsum("ntd,dhe->nthe", y, a[f"{attention}{part}/kernel"]) + a[f"{attention}{part}/bias"]
                for part in ("query", "key", "value")
            )
            weights = (torch.einsum("nqhe,nkhe->nhqk", q, k) / q.shape[-1] ** 0.5).softmax(-1)
            y = torch.einsum("nhqk,nkhe->nqhe", weights, v)
            x = x + torch.einsum("nqhe,hed->nqd", y, a[attention + "out/kernel"]) + a[attention + "out/bias"]
            y = self.norm(block + "LayerNorm_2", x) @ a[mlp + "Dense_0/kernel"] + a[mlp + "Dense_0/bias"]
            x = x + F.gelu(y) @ a[mlp + "Dense_1/kernel"] + a[mlp + "Dense_1/bias"]
        y = self.norm("Transformer/encoder_norm", x)[:, 0]
        if self.representation is not None:
            y = torch.tanh(y @ a["pre_logits/kernel"] + a["pre_logits/bias"])
        return y @ a["head/kernel"] + a["head/bias"]

    def norm(self, name: str, x: Tensor) -> Tensor:
        return F.layer_norm(x, (WIDTH,), self.arrays[name + "/scale"], self.arrays[name + "/bias"], 1e-6)
