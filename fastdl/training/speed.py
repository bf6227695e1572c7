"""How much of a training step is spent in fused ops."""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import nn

from fastdl.training.batches import TrainingBatches

__all__ = ["fused_share"]

_STEPS = 5


def fused_share(model: nn.Module, batches: TrainingBatches) -> float:
    """The share of time that fused ops take in forward and backward of a training step, between 0 and 1.

    Measured by `fastdl.profile` in a few steps of a copy of the model, so that nothing of the run changes. Convolutions
    that a fused op contains count; where the convolution is a library's, its part is counted with torch's operators.
    """
    from fastdl.profile import profile

    network = copy.deepcopy(model).train()
    images, labels = batches.training_batch(0, 0)

    def step() -> None:
        F.cross_entropy(network(images), labels).backward()

    step()
    device = "cuda" if images.device.type == "cuda" else "cpu"
    with profile(device=device) as taken, torch.random.fork_rng(devices=[]):
        for _ in range(_STEPS):
            step()
    accounts = taken.accounts
    return accounts.seconds_of_ops / accounts.whole if accounts.whole else 0.0
