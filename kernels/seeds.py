"""Dropout's seed and probability as kernels take them."""

from __future__ import annotations

from torch import Tensor

LEVELS = 1 << 16


def dropped_levels(dropout_p: float) -> int:
    """How many of the 65,536 levels drop, as ``fastdl.reference.dropout`` rounds."""
    return round(dropout_p * LEVELS)


def scale_of_kept(dropped: int) -> float:
    """What a kept value is multiplied by."""
    return LEVELS / (LEVELS - dropped) if dropped < LEVELS else 0.0


def seed_arguments(seed: Tensor, on_meta: bool) -> tuple[Tensor | None, int, int]:
    """The seed in the GPU's memory, or its two words as signed numbers: those of a seed on the host are read here.

    ``on_meta``: the call is only taken down, and a seed in the GPU's memory stands for either.
    """
    if seed.device.type != "cpu" or on_meta:
        return seed, 0, 0
    both = int(seed.item())
    return None, _signed(both), _signed(both >> 32)


def _signed(word: int) -> int:
    """The lower 32 bits as a signed number."""
    word &= 0xFFFFFFFF
    return word - (1 << 32) if word >= 1 << 31 else word
