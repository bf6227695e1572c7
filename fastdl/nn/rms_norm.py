"""`torch.nn.RMSNorm` with the addition before it fused."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from fastdl.ops.rms_norm import rms_norm


class RMSNorm(nn.RMSNorm):
    r"""Root-mean-square normalisation (Zhang & Sennrich 2019, arXiv:1910.07467), after adding a residual.

    Takes what `torch.nn.RMSNorm` takes and loads its state_dict. Input, residual and output are
    (\*, \*normalized_shape), of any floating dtype and strides.

    ``forward(input)`` returns the normalised tensor, ``forward(input, residual)`` a pair: the normalised sum, and the
    sum ``input + residual`` itself (see `fastdl.ops.rms_norm`).

    Raises ValueError for input that does not end in ``normalized_shape``.
    """

    def forward(self, input: Tensor, residual: Tensor | None = None) -> Any:
        return rms_norm(input, self.normalized_shape, self.weight, self.eps, residual=residual)
