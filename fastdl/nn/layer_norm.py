"""`torch.nn.LayerNorm` with the addition before it fused."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from fastdl.ops.layer_norm import layer_norm


class LayerNorm(nn.LayerNorm):
    r"""Layer normalisation (Ba et al. 2016, arXiv:1607.06450) of the trailing dimensions, after adding a residual.

    Takes what `torch.nn.LayerNorm` takes and loads its state_dict. Input, residual and output are
    (\*, \*normalized_shape), of any floating dtype and strides.

    ``forward(input)`` returns the normalised tensor, ``forward(input, residual)`` a pair: the normalised sum, and the
    sum ``input + residual`` itself, to which a pre-norm transformer's next block adds (see `fastdl.ops.layer_norm`).

    Raises ValueError for input that does not end in ``normalized_shape``.
    """

    def forward(self, input: Tensor, residual: Tensor | None = None) -> Any:
        return layer_norm(input, self.normalized_shape, self.weight, self.bias, self.eps, residual=residual)
