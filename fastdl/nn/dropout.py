"""`torch.nn.Dropout` with the addition behind it fused."""

from __future__ import annotations

from torch import Tensor, nn

from fastdl.ops.dropout import dropout


class Dropout(nn.Dropout):
    r"""Dropout (Srivastava et al. 2014), whose result may be added to a residual in the same pass.

    Takes what `torch.nn.Dropout` takes. ``forward(input)`` returns the dropped tensor, ``forward(input, residual)``
    the sum of it and the residual; in evaluation the input itself, and ``input + residual``. Input, residual and output
    are (\*), of any floating dtype and strides.

    With ``inplace=True`` the input is overwritten where no residual is given, as in torch; that takes torch's own op.
    """

    def forward(self, input: Tensor, residual: Tensor | None = None) -> Tensor:
        if self.inplace and residual is None:
            return super().forward(input)
        return dropout(input, self.p, self.training, residual=residual)
