"""A model that a run has trained, from its files, with what one has to know to give it an image."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fastdl.models import build_model

__all__ = ["Trained", "load_trained"]


@dataclass(frozen=True)
class Trained:
    """A model in evaluation mode and its data.

    Attributes:
        model: maps normalised images to logits.
        config: of the run, as nested dictionaries.
        image_shape: channels, height and width of the images that it was trained on.
        class_names: of the logits.
        mean, std: of each channel, of values scaled to [0, 1].
    """

    model: nn.Module
    config: Mapping[str, Any]
    image_shape: tuple[int, int, int]
    class_names: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def normalize(self, image: Tensor) -> Tensor:
        """uint8 (C, H, W) as the model takes it, in float32."""
        mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (self.mean, self.std))
        return (image.to(torch.float32) / 255 - mean) / std

    def read_image(self, path: Path) -> Tensor:
        """Read an image file as uint8 (C, H, W): its middle square, scaled to the model's size, in its colours.

        Raises:
            OSError: the file cannot be read, or is no image.
        """
        import numpy as np
        from PIL import Image, ImageOps

        channels, height, width = self.image_shape
        with Image.open(path) as file:
            upright = ImageOps.exif_transpose(file).convert("L" if channels == 1 else "RGB")
        fitted = ImageOps.fit(upright, (width, height), Image.Resampling.LANCZOS)
        pixels = torch.from_numpy(np.array(fitted))
        return pixels.unsqueeze(0) if channels == 1 else pixels.permute(2, 0, 1).contiguous()


def load_trained(path: Path) -> Trained:
    """Load the weights of a finished run, ``weights.safetensors``, or one of its checkpoints, ``step-*.ckpt``.

    A checkpoint gives the running mean of the weights if the run keeps one, as it was then.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is neither of these.
    """
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    try:
        config, data, weights = (_read_weights if path.suffix == ".safetensors" else _read_checkpoint)(path)
        shape = data["image_shape"]
        arguments = config["model"]["arguments"]
    except (KeyError, RuntimeError, TypeError, ValueError) as error:
        raise ValueError(f"{path} holds no weights of a training run of this package: {error}") from error
    model = build_model(
        config["model"]["name"], in_channels=shape[0], num_classes=len(data["class_names"]), **arguments
    )
    model.load_state_dict(weights)
    return Trained(
        model=model.eval(),
        config=config,
        image_shape=(shape[0], shape[1], shape[2]),
        class_names=tuple(data["class_names"]),
        mean=tuple(data["mean"]),
        std=tuple(data["std"]),
    )


def _read_weights(path: Path) -> tuple[dict[str, Any], dict[str, Any], dict[str, Tensor]]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (it is no dictionary)
    except SafetensorError as error:
        raise ValueError(str(error)) from error
    if missing := {"config", "data"} - metadata.keys():
        raise ValueError(f"its metadata lacks {', '.join(sorted(missing))}")
    return json.loads(metadata["config"]), json.loads(metadata["data"]), weights


def _read_checkpoint(path: Path) -> tuple[dict[str, Any], dict[str, Any], dict[str, Tensor]]:
    import pickle

    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(str(error).split("\n", 1)[0]) from error
    state = content["state_dict"]
    average = "average.module."
    prefix = average if any(name.startswith(average) for name in state) else "model."
    weights = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
    return content["fastdl"]["config"], content["fastdl"]["data"], weights
