"""Other packages' LayerNorm and RMSNorm on a GPU, as functions of the benchmarks' own arguments.

Neither apex nor, for LayerNorm, Liger adds the residual within its kernel: there torch's addition stands before it.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from .cases import Case, Function
from .row_norms import RESIDUAL

LAYER_EPS, RMS_EPS = 1e-5, 1e-6
# Liger may write the input's gradient into the output's, which here is the next call's too.
IN_PLACE = False
NO_OFFSET, CASTING = 0.0, "llama"


def liger_layer_norm(case: Case) -> Function:
    from liger_kernel.ops.layer_norm import LigerLayerNormFunction  # type: ignore[import-not-found]

    def norm(input: Tensor, weight: Tensor, bias: Tensor) -> Any:
        return LigerLayerNormFunction.apply(input, weight, bias, LAYER_EPS)

    return _behind_a_sum(norm) if case.variant == RESIDUAL else norm


def apex_layer_norm(case: Case) -> Function:
    from apex.normalization.fused_layer_norm import fused_layer_norm_affine  # type: ignore[import-not-found]

    def norm(input: Tensor, weight: Tensor, bias: Tensor) -> Any:
        return fused_layer_norm_affine(input, weight, bias, (case.size[-1],), LAYER_EPS)

    return _behind_a_sum(norm) if case.variant == RESIDUAL else norm


def liger_rms_norm(case: Case) -> Function:
    """With a residual by the kernel that adds it."""
    if case.variant == RESIDUAL:
        from liger_kernel.ops.fused_add_rms_norm import (  # type: ignore[import-not-found]
            LigerFusedAddRMSNormFunction,
        )

        def added(input: Tensor, residual: Tensor, weight: Tensor) -> Any:
            return LigerFusedAddRMSNormFunction.apply(input, residual, weight, RMS_EPS, NO_OFFSET, CASTING, IN_PLACE)

        return added
    from liger_kernel.ops.rms_norm import LigerRMSNormFunction  # type: ignore[import-not-found]

    def norm(input: Tensor, weight: Tensor) -> Any:
        return LigerRMSNormFunction.apply(input, weight, RMS_EPS, NO_OFFSET, CASTING, IN_PLACE)

    return norm


def apex_rms_norm(case: Case) -> Function:
    from apex.normalization.fused_layer_norm import fused_rms_norm_affine

    def norm(input: Tensor, weight: Tensor) -> Any:
        return fused_rms_norm_affine(input, weight, (case.size[-1],), RMS_EPS)

    return _behind_a_sum(norm) if case.variant == RESIDUAL else norm


def _behind_a_sum(norm: Function) -> Function:
    """The norm of input and residual, and their sum."""

    def added(input: Tensor, residual: Tensor, *parameters: Tensor) -> tuple[Any, Tensor]:
        total = input + residual
        return norm(total, *parameters), total

    return added
