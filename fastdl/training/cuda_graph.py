"""Forward and backward of tiny batches as CUDA graphs: there the launches of kernels take longer than the kernels.

The network runs captured in training, with the images copied to where the graph reads them. Loss and optimizer, a few
launches over all parameters together, stay outside.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["LARGEST_BATCH", "capture", "has_hooks"]

LARGEST_BATCH = 32
"""Batches up to this size are captured."""

_LOGGER = logging.getLogger(__name__)
_DTYPES = {"bf16-mixed": torch.bfloat16}


class _Network(nn.Module):
    """Stands for the network where its ``forward`` is replaced, so that the network itself keeps its own."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.model(images)
        return logits


def capture(model: nn.Module, images: Tensor, precision: str) -> Callable[[Tensor], Tensor] | None:
    """Return the network captured for images of this shape, None where it is better run as it is.

    Batches of more than `LARGEST_BATCH` images are not captured, nor is anything off a GPU or with a scaled loss
    ("16-mixed"). What the capture does to running statistics and random numbers is taken back.

    Args:
        model: in training mode, on the device of the images.
        images: (N, C, H, W), as every later batch.
        precision: Lightning's name.
    """
    if images.device.type != "cuda" or len(images) > LARGEST_BATCH or precision == "16-mixed" or has_hooks(model):
        return None
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    dtype = _DTYPES.get(precision)
    # A cache of weights that were cast would outlive the graph that wrote them.
    autocast = torch.autocast("cuda", dtype, enabled=dtype is not None, cache_enabled=False)
    make: Any = torch.cuda.make_graphed_callables
    captured: Callable[[Tensor], Tensor] | None = None
    try:
        with torch.random.fork_rng(devices=[images.device]), autocast:
            captured = make(_Network(model).train(model.training), (images.clone(),))
    except RuntimeError as error:
        _LOGGER.warning("The training step is not captured in a CUDA graph: %s", str(error).partition("\n")[0])
    with torch.no_grad():
        for name, buffer in model.named_buffers():
            buffer.copy_(before[name])
    return captured


def has_hooks(model: nn.Module) -> bool:
    """Whether somebody watches a part of the model, which a graph that is replayed would not let them."""
    return any(part._forward_hooks or part._forward_pre_hooks or part._backward_hooks for part in model.modules())
