"""`torch.nn.SyncBatchNorm` with activation and residual fused, over every backend of `torch.distributed`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from fastdl.nn.batch_norm import (
    AnyBatchNorm,
    FusedBatchNorm,
    count_batch,
    normalize_batch,
    tracked_statistics,
)
from fastdl.nn.instance_norm import move_running
from fastdl.ops import dispatch
from fastdl.ops.arguments import check_channel_parameter, check_eps, check_input, check_residual, resolve_activation
from fastdl.ops.batch_norm import BATCH_NORM

Statics = tuple[float, str, float, bool]
"""The op's static arguments: eps, activation, its parameter, and whether it comes before the norm."""


class SyncBatchNorm(FusedBatchNorm):
    """Batch normalisation whose batch is that of all processes, with an activation, in either order, and a residual.

    Takes what `torch.nn.SyncBatchNorm` takes, and ``activation``, ``activation_param`` and ``order`` (see
    `fastdl.ops.batch_norm`); loads its state_dict. Input, residual and output are (N, C, *). Unlike torch's it runs on
    the CPU too, by gloo; and since `DistributedDataParallel` refuses torch's class there, it is not derived from it.

    In training, statistics are shared by the processes of ``process_group`` (by default all), whose batches may differ
    in size and even be empty; every one of them must call forward, and backward, equally often. Parameters get the
    gradients of their own process's batch, as torch's do: `DistributedDataParallel` averages them. In evaluation, and
    without other processes, this is `BatchNorm2d` for input of any rank.

    Backward is differentiable once: a second derivative raises RuntimeError.

    Raises ValueError for an unknown activation or order, for input of fewer than 2 dimensions, without channels, or of
    other channels than the module has.
    """

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        process_group: Any | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        bias: bool = True,
        activation: str = "identity",
        activation_param: float | None = None,
        order: str = "norm_act",
    ) -> None:
        super().__init__(
            num_features, eps, momentum, affine, track_running_stats, device, dtype,
            bias=bias, activation=activation, activation_param=activation_param, order=order,
        )  # fmt: skip
        self.process_group = process_group

    def forward(self, input: Tensor, residual: Tensor | None = None) -> Tensor:
        return synchronized_batch_norm(self, input, **self._around(residual))

    @classmethod
    def convert_sync_batchnorm(cls, module: torch.nn.Module, process_group: Any | None = None) -> torch.nn.Module:
        """Puts a `SyncBatchNorm` in the place of every batch norm in ``module``, torch's or fastdl's, at any depth.

        Parameters, buffers, mode, activation and order are kept: parameters are the same objects as before.

        Args:
            module: a network, changed in place, or a batch norm.
            process_group: whose processes share statistics; None is all.

        Returns:
            ``module``, or what replaces it.
        """
        converted = module
        if isinstance(module, AnyBatchNorm):
            # On the meta device, since all of its tensors are replaced.
            converted = cls(
                module.num_features, module.eps, module.momentum, module.affine, module.track_running_stats,
                process_group, "meta",
                activation=getattr(module, "activation", "identity"),
                activation_param=getattr(module, "activation_param", None),
                order=getattr(module, "order", "norm_act"),
            )  # fmt: skip
            for name in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked"):
                setattr(converted, name, getattr(module, name))
            converted.training = module.training
        for name, child in module.named_children():
            converted.add_module(name, cls.convert_sync_batchnorm(child, process_group))
        return converted


def synchronized_batch_norm(
    module: SyncBatchNorm | torch.nn.SyncBatchNorm,
    input: Tensor,
    *,
    activation: str,
    activation_param: float | None,
    order: str,
    residual: Tensor | None,
) -> Tensor:
    """The forward of `SyncBatchNorm` with the parameters of one, torch's own included."""
    if input.ndim < 2:
        raise ValueError(f"expected at least 2D input (got {input.ndim}D input)")
    if input.shape[1] == 0:
        raise ValueError("SyncBatchNorm number of input channels should be non-zero")
    momentum = count_batch(module)
    group = _group_of(module)
    if group is None:
        return normalize_batch(
            module, input, momentum,
            activation=activation, activation_param=activation_param, order=order, residual=residual,
        )  # fmt: skip
    running_mean, running_var = tracked_statistics(module)
    op = "sync_batch_norm"
    check_input(op, input)
    check_channel_parameter(op, "running_mean", running_mean, input)
    check_channel_parameter(op, "weight", module.weight, input)
    check_eps(op, module.eps)
    check_residual(op, residual, input.shape, input)
    if residual is not None and residual.dtype != input.dtype:
        residual = residual.to(input.dtype)
    parameter = resolve_activation(op, activation, activation_param)
    statics: Statics = (module.eps, activation, parameter, order == "act_norm")
    mean, variance, count = combined_moments(*local_moments(input, residual, statics), group)
    if running_mean is not None and running_var is not None:
        # Without any value, on no process, the statistics stay as they are.
        move_running(running_mean, mean.where(count > 0, running_mean.double()), momentum)
        unbiased = variance * (count / (count - 1).clamp(min=1))
        move_running(running_var, unbiased.where(count > 0, running_var.double()), momentum)
    output: Tensor = _Synchronized.apply(
        input, module.weight, module.bias, residual, mean, variance, count, statics, dispatch.requested(), group
    )
    return output


def _group_of(module: SyncBatchNorm | torch.nn.SyncBatchNorm) -> Any | None:
    """The processes to share statistics with; None where they are not shared."""
    distributed = torch.distributed
    if not (module.training and distributed.is_available() and distributed.is_initialized()):
        return None
    group = module.process_group or distributed.group.WORLD
    return group if distributed.get_world_size(group) > 1 else None


@torch.no_grad()
def local_moments(input: Tensor, residual: Tensor | None, statics: Statics) -> tuple[Tensor, Tensor, int]:
    """This process's mean and biased variance by channel, in float64, and of how many values they are.

    They are what the op's kernels save for their backward; the output beside them is not used. With the activation
    first they are those of ``act(x) + residual``.
    """
    channels = input.shape[1]
    count = input.numel() // channels
    if count == 0:
        mean, variance = torch.zeros(2, channels, dtype=torch.float64, device=input.device)
        return mean, variance, count
    eps, activation, parameter, activation_first = statics
    first = (residual, activation, parameter) if activation_first else (None, "identity", 0.0)
    _, statistics = BATCH_NORM.forward_op(
        input.detach(), None, None, first[0], None, None, eps, *first[1:], activation_first, dispatch.requested()
    )
    mean, variance = statistics
    return mean, variance, count


@torch.no_grad()
def combined_moments(mean: Tensor, variance: Tensor, count: int, group: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Mean, biased variance and number of values of all processes' batches together, by one ``all_gather``.

    With n_i, mu_i and v_i those of process i: n = sum n_i, mu = sum n_i mu_i / n, and
    n v = sum (n_i v_i + n_i (mu_i - mu)^2): the parallel formula of Chan, Golub & LeVeque 1983, "Algorithms for
    computing the sample variance", for any number of parts. No difference of squares is taken, so a mean far above the
    deviation does no harm.
    """
    message = torch.cat([mean, variance, mean.new_full((1,), count)])
    gathered = [torch.empty_like(message) for _ in range(torch.distributed.get_world_size(group))]
    torch.distributed.all_gather(gathered, message, group)
    means, variances, counts = torch.stack(gathered).tensor_split([mean.numel(), 2 * mean.numel()], dim=1)
    total = counts.sum()
    shares = counts / total.clamp(min=1)
    mean = (shares * means).sum(0)
    variance = (shares * (variances + (means - mean).square())).sum(0)
    return mean, variance, total


class _Synchronized(torch.autograd.Function):
    """The op in its evaluation form with the statistics of all processes, and the gradient that runs through them.

    With g the gradient by the norm's output w x^ + b, x^ the normalised input, M values a channel, and sums over all
    processes, the gradient by what was normalised is (Ioffe & Szegedy 2015, section 3, its six lines taken together)

        w / sqrt(var + eps) (g - sum(g) / M - x^ sum(g x^) / M).

    The op's own backward with fixed statistics gives the first term, and, as the gradients of bias and weight, this
    process's share of the sums. The other two are an affine map of x^, which is the op's forward once more.
    """

    @staticmethod
    def forward(
        ctx: Any,
        input: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        residual: Tensor | None,
        mean: Tensor,
        variance: Tensor,
        count: Tensor,
        statics: Statics,
        request: str,
        group: Any,
    ) -> Tensor:
        output: Tensor
        output, statistics = BATCH_NORM.forward_op(input, weight, bias, residual, mean, variance, *statics, request)
        ctx.save_for_backward(input, weight, bias, residual, statistics, count)
        ctx.statics, ctx.request, ctx.group = statics, request, group
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> Any:
        input, weight, bias, residual, statistics, count = ctx.saved_tensors
        mean, variance = statistics
        eps, activation, _, activation_first = ctx.statics
        needs_input, needs_weight, needs_bias, needs_residual = ctx.needs_input_grad[:4]
        # In float64, so that the sums are; and there even where the module has no parameters, whose gradients they are.
        scale = torch.ones_like(mean) if weight is None else weight.double()
        shift = torch.zeros_like(mean) if bias is None else bias.double()

        def pull_back(gradient: Tensor, needs: list[bool]) -> Any:
            return BATCH_NORM.backward_op(
                gradient, input, scale, shift, residual, mean, variance, statistics, *ctx.statics, needs, ctx.request
            )

        def affine(weight: Tensor, bias: Tensor, residual: Tensor | None, statics: Statics) -> Tensor:
            output: Tensor = BATCH_NORM.forward_op(
                input, weight, bias, residual, mean, variance, *statics, ctx.request
            )[0]  # fmt: skip
            return output

        synchronizes = needs_input or (activation_first and needs_residual)
        sums = [synchronizes or needs_weight, synchronizes or needs_bias]
        direct = not activation_first  # the residual and the activation lie behind the norm
        activates = activation != "identity"  # if not, the residual's gradient is one that is there already
        grad_input, grad_weight, grad_bias, grad_residual = pull_back(
            grad_output, [needs_input and direct, *sums, needs_residual and direct and activates]
        )
        if not activates:
            grad_residual = grad_output
        if synchronizes:
            means = torch.stack([grad_weight, grad_bias])
            torch.distributed.all_reduce(means, group=ctx.group)
            means = means / -count.clamp(min=1)
            if direct:
                means = means * (scale * (variance + eps).rsqrt())
                grad_input = affine(means[0], means[1], grad_input, (eps, "identity", 0.0, False))
            else:
                centred = grad_output + affine(means[0], means[1], residual, ctx.statics)
                needs = [needs_input or not activates, False, False, needs_residual and activates]
                grad_input, _, _, grad_residual = pull_back(centred, needs)
                if not activates:
                    grad_residual = grad_input
        return (
            grad_input if needs_input else None,
            grad_weight.to(weight.dtype) if needs_weight else None,
            grad_bias.to(bias.dtype) if needs_bias else None,
            grad_residual if needs_residual else None,
            *[None] * 6,
        )
