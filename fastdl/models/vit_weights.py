"""Weights of Vision Transformers that others have trained, from their files or state_dicts into ours."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastdl.models.vit import VisionTransformer
from fastdl.models.vit_embedding import LearnedPositions, resample_positions
from fastdl.models.vit_layouts import LAYOUTS, Layout, recognize_layout

__all__ = ["convert_weights", "load_weights", "read_weights"]

_CLASSIFIER = ("head.", "representation.")


def load_weights(
    model: VisionTransformer,
    weights: Mapping[str, Any] | Path | str,
    *,
    library: str | None = None,
    classifier: bool = True,
) -> None:
    """Load weights of timm, torchvision, transformers or the paper's JAX code into ``model``.

    The model must have been built with the sizes of the weights, and with the ``norm_eps`` of their library: 1e-6, but
    1e-12 for transformers. Position embeddings of another size of image are interpolated.

    Args:
        weights: a state_dict, or a file: ``.safetensors``, ``.npz``, or one of ``torch.save``, which is read without
            running any code that it may hold.
        library: one of `fastdl.models.vit_layouts.LAYOUTS`; None recognises it by its names.
        classifier: load the head, too. Without it the head stays as it is, for another set of classes, and that of
            ``weights`` may be missing or have any size.

    Raises:
        ValueError: the layout is unknown, or the names or shapes do not fit; all of them are listed.
    """
    content = read_weights(weights) if isinstance(weights, Path | str) else weights
    if library is not None and library not in LAYOUTS:
        raise ValueError(f"library must be one of {', '.join(LAYOUTS)}, got {library!r}")
    layout = LAYOUTS[library] if library is not None else recognize_layout(list(content))
    model.load_state_dict(convert_weights(model, content, layout, classifier=classifier), strict=classifier)


def convert_weights(
    model: VisionTransformer, weights: Mapping[str, Any], layout: Layout, *, classifier: bool = True
) -> dict[str, Tensor]:
    """The state_dict for ``model`` that says the same as ``weights`` in their layout; see `load_weights`."""
    given = {layout.renamed(key): torch.as_tensor(value) for key, value in weights.items()}
    wanted = {
        name: value for name, value in model.state_dict().items() if classifier or not name.startswith(_CLASSIFIER)
    }
    missing, wrong, converted = [], [], {}
    for name, ours in wanted.items():
        sources = layout.sources(name)
        absent = [key for key in sources if key not in given]
        missing += absent
        if absent:
            continue
        value = layout.assemble(name, [given.pop(key) for key in sources])
        if name == "positions.table":
            value = _fitting_positions(model, value.reshape(-1, value.shape[-1]))
        if value.shape != ours.shape:
            wrong.append(f"{' + '.join(sources)} is {tuple(value.shape)}, the model's {name} {tuple(ours.shape)}")
        converted[name] = value
    prefixes = tuple(
        key.rsplit(layout.bias, 1)[0] for part in ("head.bias", "representation.0.bias") for key in layout.sources(part)
    )
    unexpected = [key for key in given if classifier or not key.startswith(prefixes)]
    if missing or wrong or unexpected:
        raise ValueError(_explain(layout, missing, wrong, unexpected))
    return converted


def read_weights(path: Path | str) -> dict[str, Any]:
    """Read a file of weights: ``.safetensors``, ``.npz`` of NumPy, or of ``torch.save``; nothing in it is run.

    Raises:
        OSError: it cannot be read.
        ValueError: it holds something else than tensors by name.
    """
    path = Path(path)
    content: Any
    if path.suffix == ".safetensors":
        import safetensors.torch

        content = safetensors.torch.load_file(path)
    elif path.suffix == ".npz":
        import numpy as np

        with np.load(path, allow_pickle=False) as arrays:
            content = {key: torch.from_numpy(arrays[key]) for key in arrays.files}
    else:
        content = torch.load(path, map_location="cpu", weights_only=True)
    if not isinstance(content, Mapping) or not all(isinstance(value, Tensor) for value in content.values()):
        raise ValueError(f"{path} must hold tensors by name, got {type(content).__name__} of other things")
    return dict(content)


def _fitting_positions(model: VisionTransformer, table: Tensor) -> Tensor:
    """Position embeddings of a square image, interpolated to the grid of the model where that is another one."""
    positions = model.positions
    if not isinstance(positions, LearnedPositions) or table.shape == positions.table.shape:
        return table
    side = math.isqrt(max(table.shape[0] - positions.prefix, 0))
    if side == 0 or side * side != table.shape[0] - positions.prefix:
        return table  # reported with its shape
    return resample_positions(table, (side, side), positions.grid, positions.prefix)


def _explain(layout: Layout, missing: list[str], wrong: list[str], unexpected: list[str]) -> str:
    parts = [f"the weights, in the layout of {layout.library}, do not fit the model"]
    for title, keys in (("missing", missing), ("unexpected", unexpected), ("of another shape", wrong)):
        if keys:
            shown = "; ".join(keys[:8]) + (f"; and {len(keys) - 8} more" if len(keys) > 8 else "")
            parts.append(f"{title}: {shown}")
    return ". ".join(parts)
