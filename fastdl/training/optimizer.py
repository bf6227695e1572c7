"""How weights change: the optimizer, the schedule of its learning rate, and the running mean of what it does."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from fastdl.training.config import OptimizerConfig

__all__ = ["make_optimizer", "warmup_cosine", "weight_averaging"]


def make_optimizer(model: nn.Module, config: OptimizerConfig) -> torch.optim.Optimizer:
    """Return the optimizer, with weight decay on the weights of convolutions and linear layers alone.

    A model may have a method ``no_weight_decay()`` that names further parameters without it.
    """
    exempt = set(model.no_weight_decay()) if hasattr(model, "no_weight_decay") else set()  # type: ignore[operator]
    decayed: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        (decayed if parameter.dim() > 1 and name not in exempt else others).append(parameter)
    groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": others, "weight_decay": 0.0}]
    if config.name == "adamw":
        return torch.optim.AdamW(groups, lr=config.learning_rate, betas=(config.momentum, config.second_momentum))
    return torch.optim.SGD(groups, lr=config.learning_rate, momentum=config.momentum, nesterov=config.momentum > 0)


def warmup_cosine(step: int, warmup: int, steps: int) -> float:
    """Return the factor on the learning rate: (step + 1) / warmup at first, then half a cosine down to zero."""
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - warmup) / max(1, steps - warmup))))


_Tensors = tuple[Tensor, ...] | list[Tensor]


def weight_averaging(decay: float) -> Callable[[_Tensors, _Tensors, Tensor | int], None]:
    """The rule for `torch.optim.swa_utils.AveragedModel` by which the mean follows the weights after each step.

    ``mean = d * mean + (1 - d) * weights``, with ``d = min(decay, (1 + n) / (10 + n))`` at update n: without that, the
    mean of a short run would still hold the weights it began with.
    """

    @torch.no_grad()
    def update(mean: _Tensors, weights: _Tensors, count: Tensor | int) -> None:
        updates = int(count)
        following = 1 - min(decay, (1 + updates) / (10 + updates))
        torch._foreach_lerp_(mean, weights, following)

    return update
