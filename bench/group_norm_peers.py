"""Other packages' GroupNorm + SiLU on a GPU, as functions of the benchmark's own arguments."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor

from .cases import Case, Function

EPS = 1e-5


def apex(case: Case) -> Function | None:
    """NVIDIA apex's kernel with SiLU in it; None for what it hands to torch: NCHW, channels or groups not listed."""
    from apex.contrib.group_norm import GroupNorm  # type: ignore[import-not-found]

    module: Any = GroupNorm(case.num_groups, case.size[1], eps=EPS, affine=True, act="silu")
    supported = case.size[1] in GroupNorm.SUPPORTED_CHANNELS and case.num_groups in GroupNorm.SUPPORTED_GROUPS
    if case.layout != "channels_last" or not supported:
        return None
    # The benchmark's parameters take the place of the module's own.
    del module.weight, module.bias

    def function(input: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        module.weight, module.bias = weight, bias
        output: Tensor = module(input)
        return output

    return function


def liger(case: Case) -> Function:
    """Liger's Triton kernel, and torch's SiLU behind it."""
    from liger_kernel.ops.group_norm import LigerGroupNormFunction  # type: ignore[import-not-found]

    channels, groups = case.size[1], case.num_groups

    def function(input: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return F.silu(LigerGroupNormFunction.apply(input, weight, bias, channels, groups, EPS))

    return function
