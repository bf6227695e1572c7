"""The model set: one family a file, each known by name to :func:`build_model`."""

from __future__ import annotations

import importlib
from typing import Any

from torch import nn

from fastdl.models.initialization import derive_seed, initialize_weights

__all__ = ["MODELS", "build_model", "derive_seed", "initialize_weights"]

# Name: module and class. A family joins by its file and its line here; modules are imported when they are asked for.
_FAMILIES = {
    "conv_network": ("fastdl.models.conv_network", "ConvNetwork"),
    "vit": ("fastdl.models.vit", "VisionTransformer"),
}

# Sizes that the literature knows by name: the module, and the function that takes the name.
_VIT = ("vit_ti_16", "vit_s_16", "vit_s_32", "vit_b_16", "vit_b_32", "vit_l_16", "vit_l_32", "vit_h_14")
_RESNET = ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152")
_SIZED = {
    **dict.fromkeys(_VIT, ("fastdl.models.vit", "vision_transformer")),
    **dict.fromkeys(_RESNET, ("fastdl.models.resnet", "resnet")),
}

MODELS = (*_FAMILIES, *_SIZED)
"""Names that :func:`build_model` takes."""


def build_model(name: str, **arguments: Any) -> nn.Module:
    """Build a model by name.

    Args:
        name: one of ``MODELS``.
        **arguments: of the model's class, or of the function that builds it.

    Raises:
        ValueError: ``name`` is unknown, or an argument is refused.
    """
    if name not in MODELS:
        raise ValueError(f"name must be one of {', '.join(MODELS)}, got {name!r}")
    if name in _SIZED:
        module, function = _SIZED[name]
        model = getattr(importlib.import_module(module), function)(name, **arguments)
    else:
        module, class_name = _FAMILIES[name]
        model = getattr(importlib.import_module(module), class_name)(**arguments)
    assert isinstance(model, nn.Module)
    return model
