"""A picture of what a trained Vision Transformer looks at in one image."""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

import fastdl
from fastdl.data import load_dataset
from fastdl.data.files import atomic_write
from fastdl.experiments.options import default_backend, resolve_backend
from fastdl.models.vit import VisionTransformer
from fastdl.models.vit_attention import attention_rollout, record_attention, weights_of_patches
from fastdl.recipes.trained import Trained, load_trained

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["Explanation", "Options", "draw", "explain", "run"]

_SHOWN_CLASSES = 5
_ATTENTION_COLOR = (1.0, 0.35, 0.0)  # orange, which no shade of grey is taken for


@dataclass(frozen=True)
class Options:
    """Draw where a trained Vision Transformer looks: each head of a layer, and all layers together."""

    checkpoint: Path
    """Weights of a run: its weights.safetensors, or one of its checkpoints."""
    image: str
    """A file with an image, or the number of an image of the test split of the run's data set."""
    output: Path
    """File of the picture; its suffix tells the format, as .png or .svg."""
    layer: int = -1
    """Encoder block whose heads are shown, from 0, or negative from the end."""
    data_dir: Path | None = None
    """Folder of the data sets, for the number of an image; $FASTDL_DATA if it is not given."""
    backend: str = field(default_factory=default_backend)
    """Kernels of the fused ops: auto, reference, cpu, triton or cuda."""


@dataclass(frozen=True)
class Explanation:
    """What a model makes of one image.

    Attributes:
        heads: (H, h, w), what the classifier's token takes from each patch, for each head of a layer.
        layer: of these heads, from 0.
        depth: number of layers.
        rollout: (h, w), how much of each patch has come to the classifier through all layers.
        probabilities: (classes,).
    """

    heads: Tensor
    layer: int
    depth: int
    rollout: Tensor
    probabilities: Tensor


@torch.no_grad()
def explain(model: VisionTransformer, image: Tensor, layer: int = -1) -> Explanation:
    """Run the model on one normalised image (C, H, W) and gather its attention.

    Raises ValueError for a layer that is not there.
    """
    images = image.unsqueeze(0)
    grid = model.patch_embedding.grid(images)
    with record_attention(model) as maps:
        logits = model.eval()(images)
    if not -len(maps) <= layer < len(maps):
        raise ValueError(f"layer must be from 0 to {len(maps) - 1}, or negative from the end, got {layer}")
    layer %= len(maps)
    return Explanation(
        heads=weights_of_patches(model, maps[layer][0], grid),
        layer=layer,
        depth=len(maps),
        rollout=weights_of_patches(model, attention_rollout([maps[i] for i in sorted(maps)])[0], grid),
        probabilities=F.softmax(logits[0].float(), dim=-1),
    )


def draw(
    path: Path, image: Tensor, explanation: Explanation, class_names: tuple[str, ...], label: int | None = None
) -> None:
    """Draw the image, where all layers and each head look, and the likeliest classes.

    Args:
        path: the file; its suffix tells the format.
        image: uint8 (C, H, W), with 1 or 3 channels.
        explanation: of it.
        class_names: of the probabilities.
        label: the true class, if it is known.
    """
    from matplotlib.figure import Figure

    heads = len(explanation.heads)
    columns = min(max(heads, 3), 6)
    rows = math.ceil(heads / columns)
    figure = Figure(figsize=(1.9 * columns, 3.6 + 2.1 * rows), layout="constrained")
    upper, lower = figure.subfigures(2, 1, height_ratios=(3.4, 2.1 * rows + 0.2)).flat  # type: ignore[union-attr]

    picture = image.permute(1, 2, 0).squeeze(-1).numpy()
    shown, whole, classes = upper.subplots(1, 3, width_ratios=(1, 1, 1))
    _show(shown, picture, "image" if label is None else f"image: {class_names[label]}")
    _show(whole, picture, "attention rollout, all layers", explanation.rollout)
    _show_classes(classes, explanation.probabilities, class_names, label)

    lower.suptitle(f"what each head of layer {explanation.layer + 1} of {explanation.depth} looks at", fontsize=10)
    grid = lower.subplots(rows, columns, squeeze=False)
    for number, axes in enumerate(grid.flat):
        if number < heads:
            _show(axes, picture, f"head {number + 1}", explanation.heads[number])
        else:
            axes.set_axis_off()
    figure.supxlabel(
        "the stronger the orange, the more attention; each panel is scaled to its own maximum", fontsize=8, color="0.35"
    )
    with atomic_write(path) as file:
        figure.savefig(file, format=path.suffix.removeprefix(".") or "png", dpi=150)


def run(options: Options) -> Path:
    """Write the picture, say what was predicted, and return the picture's file.

    Raises:
        ValueError: checkpoint, image or layer do not fit.
        OSError, DataError: a file or the data is missing or damaged.
    """
    backend = resolve_backend(options.backend)
    trained = load_trained(options.checkpoint)
    if not isinstance(trained.model, VisionTransformer):
        raise ValueError(f"{options.checkpoint} holds the model {trained.config['model']['name']!r}, not a vit")
    image, label = _find_image(options, trained)
    with fastdl.use_backend(backend):
        explanation = explain(trained.model, trained.normalize(image), options.layer)
    draw(options.output, image, explanation, trained.class_names, label)
    best = explanation.probabilities.topk(min(3, len(trained.class_names)))
    found = ", ".join(
        f"{trained.class_names[index]} {100 * probability:.1f} %"
        for probability, index in zip(best.values.tolist(), best.indices.tolist(), strict=True)
    )
    truth = "" if label is None else f" It is labelled {trained.class_names[label]}."
    print(f"The image is taken for: {found}.{truth}", file=sys.stderr)
    return options.output


def _find_image(options: Options, trained: Trained) -> tuple[Tensor, int | None]:
    """The image, uint8 (C, H, W), and its label where it comes from the data set."""
    if not options.image.isdecimal():
        return trained.read_image(Path(options.image)), None
    name = trained.config["data"]["dataset"]
    test = load_dataset(name, options.data_dir).test
    if int(options.image) >= len(test):
        raise ValueError(f"image must be from 0 to {len(test) - 1} for the test split of {name}, got {options.image}")
    return test.images[int(options.image)], int(test.labels[int(options.image)])


def _show(axes: Axes, picture: Any, title: str, attention: Tensor | None = None) -> None:
    """Show an image, or its grey values with the attention to each patch over them, the more the less transparent.

    One colour of varying opacity and not a colour map: of a mixture of two scales of brightness nobody could tell
    whether the image is bright in a place or the attention.
    """
    axes.set_title(title, fontsize=9)
    axes.set_axis_off()
    extent = (0, picture.shape[1], picture.shape[0], 0)
    if attention is None:
        axes.imshow(picture, cmap="gray", extent=extent, interpolation="nearest", vmin=0, vmax=255)
        return
    grey = picture.mean(axis=2) if picture.ndim == 3 else picture
    axes.imshow(grey, cmap="gray", extent=extent, interpolation="nearest", vmin=0, vmax=255)
    share = attention / attention.max().clamp_min(torch.finfo(attention.dtype).tiny)
    overlay = torch.tensor(_ATTENTION_COLOR).expand(*share.shape, 3)
    colored = torch.cat([overlay, 0.85 * share.float().unsqueeze(-1)], dim=-1)
    axes.imshow(colored.numpy(), extent=extent, interpolation="nearest")


def _show_classes(axes: Axes, probabilities: Tensor, class_names: tuple[str, ...], label: int | None) -> None:
    best = probabilities.topk(min(_SHOWN_CLASSES, len(class_names)))
    indices = best.indices.tolist()
    values = [100 * value for value in best.values.tolist()]
    colors = ["#009E73" if index == label else "#0072B2" for index in indices]
    bars = axes.barh([class_names[index] for index in indices], values, color=colors)
    axes.bar_label(bars, [f"{value:.1f} %" for value in values], padding=3, fontsize=8)
    axes.invert_yaxis()
    axes.set_xlim(0, 135)
    axes.set_xticks([])
    axes.tick_params(axis="y", length=0, labelsize=8)
    axes.spines[["top", "right", "bottom"]].set_visible(False)
    axes.set_title("prediction" if label is None else "prediction (true class green)", fontsize=9)
