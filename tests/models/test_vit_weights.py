"""Weights of other libraries give the same logits here, and what does not fit is told by name."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor

import fastdl
from fastdl.models.vit import VisionTransformer
from fastdl.models.vit_layouts import LAYOUTS, recognize_layout
from fastdl.models.vit_weights import load_weights, read_weights
from tests.models import plain_vit
from tests.models.plain_vit import CLASSES, DEPTH, HEADS, HIDDEN, IMAGE, PATCH, SIZES, WIDTH, random_parameters


@pytest.fixture(autouse=True)
def reference():
    with fastdl.use_backend("reference"):
        yield


def images(size: int = IMAGE) -> Tensor:
    return torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def built(**options: Any) -> VisionTransformer:
    return VisionTransformer(**{**SIZES, **options}).double().eval()


def timm() -> torch.nn.Module:
    return random_parameters(plain_vit.Timm())


SOURCES: dict[str, tuple[str, Any, dict[str, Any]]] = {
    "timm": ("timm", timm, {}),
    "torchvision": ("torchvision", lambda: random_parameters(plain_vit.Torchvision()), {}),
    "torchvision with a representation": (
        "torchvision",
        lambda: random_parameters(plain_vit.Torchvision(10)),
        {"representation_size": 10},
    ),
    "transformers 4": ("transformers", lambda: random_parameters(plain_vit.Transformers(4)), {"norm_eps": 1e-12}),
    "transformers 5": ("transformers", lambda: random_parameters(plain_vit.Transformers(5)), {"norm_eps": 1e-12}),
    "jax": ("jax", plain_vit.Jax, {}),
    "jax with a representation": ("jax", lambda: plain_vit.Jax(10), {"representation_size": 10}),
}


def weights_of(source: Any) -> dict[str, Tensor]:
    return source.arrays if isinstance(source, plain_vit.Jax) else source.state_dict()


@pytest.mark.parametrize("name", SOURCES)
def test_logits_are_those_of_the_source(name: str) -> None:
    library, make, options = SOURCES[name]
    source, model = make(), built(**options)
    weights = weights_of(source)
    assert recognize_layout(list(weights)).library == library
    load_weights(model, weights)
    torch.testing.assert_close(model(images()), source(images()))


def test_torchvisions_files_have_older_names() -> None:
    source, model = random_parameters(plain_vit.Torchvision()), built()
    renamed = {
        key.replace(".mlp.0.", ".mlp.linear_1.").replace(".mlp.3.", ".mlp.linear_2."): value
        for key, value in source.state_dict().items()
    }
    assert renamed.keys() != source.state_dict().keys()
    load_weights(model, renamed)
    torch.testing.assert_close(model(images()), source(images()))


def test_our_own_state_dict_is_a_layout_too() -> None:
    source, model = random_parameters(built()), built()
    load_weights(model, source.state_dict(), library="fastdl")
    torch.testing.assert_close(model(images()), source(images()))


@pytest.mark.parametrize("suffix", [".safetensors", ".pth", ".npz"])
def test_files(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"weights{suffix}"
    source: Any
    if suffix == ".npz":
        source = plain_vit.Jax()
        np.savez(path, **{key: value.numpy() for key, value in source.arrays.items()})
    else:
        source = timm()
        (safetensors.torch.save_file if suffix == ".safetensors" else torch.save)(source.state_dict(), path)
    model = built()
    load_weights(model, path)
    torch.testing.assert_close(model(images()), source(images()))


def test_a_file_that_would_run_code_is_refused(tmp_path: Path) -> None:
    torch.save({"weight": Path("x")}, tmp_path / "weights.pth")
    with pytest.raises(Exception, match=r"weights_only|Weights only"):
        read_weights(tmp_path / "weights.pth")
    torch.save({"weight": "text"}, tmp_path / "weights.pth")
    with pytest.raises(ValueError, match="must hold tensors by name"):
        read_weights(tmp_path / "weights.pth")


def test_position_embeddings_are_interpolated_to_the_models_size() -> None:
    source = timm()
    table = source.get_parameter("pos_embed").data
    # A constant over the patches is the same at every size.
    table[0, 1:] = table[0, 1]
    model = built(image_size=2 * IMAGE)
    load_weights(model, source.state_dict())
    positions = model.positions.table
    assert positions.shape == (1 + 4 * (IMAGE // PATCH) ** 2, WIDTH)
    torch.testing.assert_close(positions[0], table[0, 0])
    torch.testing.assert_close(positions[1:], table[0, 1].expand(len(positions) - 1, -1), atol=1e-6, rtol=1e-5)


def test_without_the_classifier_the_head_stays() -> None:
    source, model = timm(), built(num_classes=3)
    before = model.head.weight.clone()
    with pytest.raises(ValueError, match=r"of another shape: head.weight is \(7, 24\), the model's head.weight"):
        load_weights(model, source.state_dict())
    load_weights(model, source.state_dict(), classifier=False)
    assert torch.equal(model.head.weight, before)
    torch.testing.assert_close(model.features(images()) @ source.head.weight.T + source.head.bias, source(images()))


def test_what_does_not_fit_is_named() -> None:
    weights = dict(timm().state_dict())
    with pytest.raises(ValueError, match=r"layout of timm, do not fit the model\. missing: blocks\.2\.norm1\.weight; "):
        load_weights(built(depth=3), weights)
    with pytest.raises(ValueError, match=r"unexpected: blocks\.1\.norm1\.weight; .* and 4 more"):
        load_weights(built(depth=1), weights)
    with pytest.raises(ValueError, match=r"unexpected: blocks\.0\.attn\.qkv\.bias; blocks\.1\.attn\.qkv\.bias"):
        load_weights(built(qkv_bias=False), weights)
    with pytest.raises(ValueError, match="unexpected: cls_token"):
        load_weights(built(pooling="mean"), weights)
    with pytest.raises(ValueError, match="weights must be those of a Vision Transformer of fastdl, timm"):
        load_weights(built(), {"conv1.weight": torch.zeros(1)})
    with pytest.raises(ValueError, match="library must be one of fastdl, timm, torchvision, transformers, jax"):
        load_weights(built(), weights, library="keras")


def test_a_model_is_not_touched_by_weights_that_do_not_fit() -> None:
    model = built()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    weights = dict(timm().state_dict())
    del weights["norm.bias"]
    with pytest.raises(ValueError, match=r"missing: norm\.bias"):
        load_weights(model, weights)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


# The libraries themselves, where they are installed.


def library(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except Exception as error:  # torchvision's own import fails beside a torch without CUDA
        pytest.skip(f"{name} cannot be imported: {error}")


def test_transformers_itself() -> None:
    transformers = library("transformers")
    config = transformers.ViTConfig(
        image_size=IMAGE, patch_size=PATCH, hidden_size=WIDTH, num_hidden_layers=DEPTH, num_attention_heads=HEADS,
        intermediate_size=HIDDEN, num_labels=CLASSES,
    )  # fmt: skip
    source = random_parameters(transformers.ViTForImageClassification(config))
    model = built(norm_eps=config.layer_norm_eps)
    load_weights(model, source.state_dict())
    torch.testing.assert_close(model(images()), source(images()).logits)

    source = random_parameters(transformers.ViTModel(config))
    model = built(norm_eps=config.layer_norm_eps)
    load_weights(model, source.state_dict(), classifier=False)
    torch.testing.assert_close(model.encode(images()), source(images()).last_hidden_state)


def test_timm_itself() -> None:
    vision_transformer = pytest.importorskip("timm.models.vision_transformer", exc_type=ImportError)
    source = random_parameters(
        vision_transformer.VisionTransformer(
            img_size=IMAGE, patch_size=PATCH, embed_dim=WIDTH, depth=DEPTH, num_heads=HEADS, mlp_ratio=HIDDEN / WIDTH,
            num_classes=CLASSES,
        )
    )  # fmt: skip
    model = built()
    load_weights(model, source.state_dict())
    torch.testing.assert_close(model(images()), source(images()))


def test_torchvision_itself() -> None:
    models = library("torchvision.models")
    source = random_parameters(
        models.VisionTransformer(
            image_size=IMAGE, patch_size=PATCH, num_layers=DEPTH, num_heads=HEADS, hidden_dim=WIDTH, mlp_dim=HIDDEN,
            num_classes=CLASSES,
        )
    )  # fmt: skip
    model = built()
    load_weights(model, source.state_dict())
    torch.testing.assert_close(model(images()), source(images()))


def test_every_layout_names_every_parameter() -> None:
    model = built(representation_size=5)
    for layout in LAYOUTS.values():
        sources = [key for name in model.state_dict() for key in layout.sources(name)]
        assert len(set(sources)) == len(sources)
