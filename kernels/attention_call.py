"""A call of attention as kernels take it: operands, scalars and constants that forward and backward share."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from fastdl.kernels import attention_plan
from fastdl.kernels.attention_layout import Mask, Operand, is_wide, mask_of, operand
from fastdl.kernels.attention_plan import Problem, feature_block
from fastdl.kernels.seeds import dropped_levels, scale_of_kept, seed_arguments

LOG2_E = 1.4426950408889634
FARTHEST = 1 << 30


@dataclass
class Call:
    """The arguments of one call of `fastdl.kernels.attention.forward`."""

    query: Tensor
    key: Tensor
    value: Tensor
    attn_mask: Tensor | None
    query_offset: Tensor | None
    cu_seqlens_q: Tensor | None
    cu_seqlens_k: Tensor | None
    seed: Tensor | None
    scale: float
    softcap: float
    window_left: int
    window_right: int
    offset: int
    dropout_p: float
    max_seqlen_q: int
    max_seqlen_k: int

    @property
    def is_empty(self) -> bool:
        return 0 in self.query.shape or 0 in self.key.shape or self.samples == 0

    @property
    def varlen(self) -> bool:
        return self.cu_seqlens_q is not None

    @cached_property
    def samples(self) -> int:
        """Samples, or sequences."""
        return self.query.shape[0] if self.cu_seqlens_q is None else self.cu_seqlens_q.shape[0] - 1

    @cached_property
    def q(self) -> Operand:
        return operand(self.query)

    @cached_property
    def k(self) -> Operand:
        return operand(self.key)

    @cached_property
    def v(self) -> Operand:
        return operand(self.value)

    @cached_property
    def mask(self) -> Mask:
        return mask_of(self.attn_mask)

    @cached_property
    def left(self) -> bool:
        return self.window_left >= 0

    @cached_property
    def right(self) -> bool:
        return self.window_right >= 0

    @cached_property
    def problem(self) -> Problem:
        query, key = self.query, self.key
        length = query.shape[2] if self.cu_seqlens_q is None else max(min(self.max_seqlen_q, query.shape[2]), 1)
        keys = key.shape[2] if self.cu_seqlens_q is None else max(min(self.max_seqlen_k, key.shape[2]), 1)
        return Problem(
            query.element_size(), self.samples, query.shape[1], key.shape[1], length, keys, query.shape[3],
            self.value.shape[3], self.left or self.right,
            self.attn_mask is not None or self.dropout_p > 0 or self.softcap > 0, self.varlen,
            attention_plan.architecture_of(query.device),
        )  # fmt: skip

    @property
    def group(self) -> int:
        return self.query.shape[1] // self.key.shape[1]

    @cached_property
    def indices(self) -> tuple[Tensor | None, ...]:
        """The offsets of samples and the starts of sequences, dense."""
        tensors = (self.query_offset, self.cu_seqlens_q, self.cu_seqlens_k)
        return tuple(None if tensor is None else tensor.contiguous() for tensor in tensors)

    @cached_property
    def seeds(self) -> tuple[Tensor | None, int, int]:
        """The seed in the GPU's memory, or its two words."""
        seed = self.seed
        if seed is None or self.dropout_p == 0:
            return None, 0, 0
        return seed_arguments(seed, self.query.device.type == "meta")

    @cached_property
    def dropped(self) -> int:
        return dropped_levels(self.dropout_p)

    @property
    def kept_scale(self) -> float:
        return scale_of_kept(self.dropped)

    @cached_property
    def window(self) -> tuple[int, int]:
        """The limits of key - query, for the offset that all samples have."""
        low, high = self.offset - self.window_left, self.offset + self.window_right
        return max(min(low, FARTHEST), -FARTHEST), max(min(high, FARTHEST), -FARTHEST)

    @cached_property
    def scores(self) -> tuple[float, float]:
        """``scale`` and ``cap`` of `fastdl.kernels.attention_scores.scores`."""
        base = 1.0 if self.query.dtype == torch.float32 else LOG2_E
        if self.softcap > 0:
            return self.scale / self.softcap, self.softcap * base
        return self.scale * base, 0.0

    def constants(self) -> dict[str, Any]:
        """What every kernel's compilation has."""
        features, values = self.query.shape[3], self.value.shape[3]
        return {
            "FEATURES": features,
            "FEATURE_BLOCK": feature_block(features),
            "VALUES": values,
            "VALUE_BLOCK": feature_block(values),
            "GROUP": self.group,
            "LEFT": self.left,
            "RIGHT": self.right,
            "CAPPED": self.softcap > 0,
            "MASK": self.mask.kind,
            "MASK_COLUMNS": self.mask.columns,
            "MASK_UNIT": self.mask.unit,
            "DROPOUT": self.dropout_p > 0,
        }

    @property
    def wide(self) -> bool:
        return is_wide((self.q, self.k, self.v))


def log_sums_like(query: Tensor) -> Tensor:
    return torch.empty(query.shape[:3], dtype=torch.float32, device=query.device)


def blocks_of(count: int, width: int) -> int:
    return math.ceil(count / width)
