"""A chain of conv-norm-act blocks that keeps for backward what its convolutions put out, and nothing else."""

from __future__ import annotations

import itertools
from typing import Any

from torch import Tensor, nn

from fastdl.nn.batch_norm import AnyBatchNorm, takes_batch_statistics
from fastdl.nn.conv_norm_act import ConvNormAct1d, ConvNormAct2d, ConvNormAct3d
from fastdl.nn.conv_norm_sequence import batch_arguments, convolution_arguments, has_hooks
from fastdl.nn.sync_batch_norm import SyncBatchNorm
from fastdl.ops.conv_norm_act import convolve
from fastdl.ops.convolution import Norm
from fastdl.ops.norm_act_conv import convolve_normalized

Block = ConvNormAct1d | ConvNormAct2d | ConvNormAct3d
OP = "ConvNormActChain"


class ConvNormActChain(nn.Sequential):
    """`ConvNormAct1d`, `ConvNormAct2d` or `ConvNormAct3d` blocks one after the other, each activation made twice.

    In a plain chain every convolution keeps its input, the activated tensor, for its weight's gradient, and every norm
    the convolution's output: two tensors a block (eager torch: two with ReLU, three with SiLU). Here the norm and the
    activation are taken together with the convolution behind them (`fastdl.ops.norm_act_conv`), which computes the
    activated tensor again in the backward: one tensor a block, for one more pass of the norm over memory. Where a fused
    kernel serves, the activated tensor does not touch memory in either direction, and the norm's statistics come from
    the convolution before.

    Parameters, state_dict and numbers are those of ``torch.nn.Sequential`` of the same blocks. Blocks that a fused link
    cannot be made of (with hooks, synchronised norms, or folded by `fastdl.nn.fold`) run as in that.

    Args:
        *blocks: at least one.

    Raises:
        TypeError: a block of another kind.
    """

    def __init__(self, *blocks: nn.Module) -> None:
        for i, block in enumerate(blocks):
            if not isinstance(block, Block):
                raise TypeError(
                    f"ConvNormActChain: block {i} must be a ConvNormAct1d, ConvNormAct2d or ConvNormAct3d; got "
                    f"{type(block).__name__}"
                )
        if not blocks:
            raise TypeError("ConvNormActChain: blocks must be one at least; got none")
        super().__init__(*blocks)

    def forward(self, input: Tensor, residual: Tensor | None = None) -> Tensor:
        """The last block's output for (N, C, *); a residual of the output's shape is added by the last block."""
        blocks: list[Any] = list(self)
        if not all(is_link(block) for block in blocks):
            return self._one_by_one(input, residual)
        first = blocks[0]
        x, known = convolve(OP, input, convolution_arguments(first.conv), wants_statistics(first))
        for block, following in itertools.pairwise(blocks):
            x, known = convolve_normalized(
                x,
                norm_of(block),
                convolution_arguments(following.conv),
                known=known,
                collect=wants_statistics(following),
                op=OP,
            )
        return norm_of(blocks[-1])(x, residual, OP, known)

    def _one_by_one(self, input: Tensor, residual: Tensor | None) -> Tensor:
        *others, last = self
        for block in others:
            input = block(input)
        output: Tensor = last(input) if residual is None else last(input, residual)
        return output


def is_link(block: nn.Module) -> bool:
    """Whether a block is nothing but the call of its op."""
    return (
        isinstance(block, Block)
        and not has_hooks(block)
        and not isinstance(block.norm, (SyncBatchNorm, nn.SyncBatchNorm))
    )


def wants_statistics(block: Any) -> bool:
    """Whether the norm of a block takes those of its convolution's output by channel."""
    norm = block.norm
    return isinstance(norm, AnyBatchNorm) and takes_batch_statistics(norm) and block.order == "conv_norm_act"


def norm_of(block: Any) -> Norm:
    """A block's norm and activation; counts the batch where the norm does so."""
    norm = block.norm
    around: dict[str, Any] = {
        "norm": block.norm_name,
        "activation": block.activation,
        "activation_param": block.activation_param,
        "activation_first": block.order == "conv_act_norm",
    }
    if norm is None:
        return Norm(**around)
    if isinstance(norm, AnyBatchNorm):
        return Norm(**batch_arguments(norm), **around)
    return Norm(**around, weight=norm.weight, bias=norm.bias, num_groups=block.num_groups, eps=norm.eps)
