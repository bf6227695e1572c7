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
}

MODELS = tuple(_FAMILIES)
"""Names that :func:`build_model` takes."""


def build_model(name: str, **arguments: Any) -> nn.Module:
    """Build a model by name.

    Args:
        name: one of ``MODELS``.
        **arguments: of the model's class.

    Raises:
        ValueError: ``name`` is unknown, or the class refuses an argument.
    """
    if name not in _FAMILIES:
        raise ValueError(f"name must be one of {', '.join(MODELS)}, got {name!r}")
    module, class_name = _FAMILIES[name]
    model = getattr(importlib.import_module(module), class_name)(**arguments)
    assert isinstance(model, nn.Module)
    return model
