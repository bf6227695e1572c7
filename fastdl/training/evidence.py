"""What is measured of a run beside its accuracy: why an arm does well or badly.

`GradientEvidence` watches the training, some steps of every epoch; `batch_statistics` and `modes` look at the trained
network, after the last step and on copies, so that no measurement changes a run.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn

from fastdl.training.batches import EvaluationBatches, TrainingBatches

__all__ = ["EVIDENCE", "GradientEvidence", "batch_statistics", "modes"]

EVIDENCE = ("gradients", "batch_statistics", "modes")
"""What can be asked for, by name."""

LOOKS_PER_EPOCH = 4
_SATURATED = 0.05
_EXAMPLES = 2048


class GradientEvidence(Callback):
    """Norm of each block's gradient, before it is clipped, and the share of its activations that are saturated.

    A Sigmoid's output y is saturated where its derivative y (1 - y) is below a twentieth of the largest there is, 1/4;
    a ReLU's where it is 0. Of other activations the share is None. `rows` is part of the checkpoint.

    Args:
        steps: of an epoch.
    """

    def __init__(self, steps: int) -> None:
        self._every = max(1, steps // LOOKS_PER_EPOCH)
        self._steps = steps
        self.rows: list[dict[str, Any]] = []
        self._saturation: dict[int, float | None] = {}
        self._handles: list[Any] = []

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if batch_idx % self._every:
            return
        self._saturation = {}
        for index, block in enumerate(_blocks(pl_module.model)):
            self._handles.append(block.register_forward_hook(self._look(index)))

    def _look(self, index: int) -> Any:
        def hook(block: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            self._saturation[index] = saturation(block, output.detach())

        return hook

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        if not self._handles:
            return
        self._release()
        blocks = _blocks(pl_module.model)
        norms = [_gradient_norm(block) for block in blocks]
        self.rows.append(
            {
                "step": trainer.global_step,
                "epoch": round(trainer.global_step / self._steps, 4),
                "gradient_norms": [float(norm) for norm in norms],
                "saturation": [self._saturation.get(index) for index in range(len(blocks))],
            }
        )

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        self._release()

    def _release(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def state_dict(self) -> dict[str, Any]:
        return {"rows": [dict(row) for row in self.rows]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.rows = [dict(row) for row in state_dict["rows"]]


def _blocks(model: Any) -> Sequence[nn.Module]:
    return list(model.blocks)


def _gradient_norm(block: nn.Module) -> Tensor:
    gradients = [parameter.grad for parameter in block.parameters() if parameter.grad is not None]
    return torch.nn.utils.get_total_norm(gradients) if gradients else torch.zeros(())


def saturation(block: nn.Module, output: Tensor) -> float | None:
    """Share of a block's outputs at which its activation hardly passes a gradient; None where that is not known."""
    # Behind a norm the activation's output is not to be seen any more.
    if getattr(block, "order", "") != "conv_norm_act":
        return None
    if block.activation == "relu":
        return float((output == 0).float().mean())
    if block.activation == "sigmoid":
        return float((output * (1 - output) < _SATURATED / 4).float().mean())
    return None


@torch.no_grad()
def batch_statistics(model: nn.Module, batches: TrainingBatches, epoch: int) -> dict[str, Any]:
    """How far the statistics of a batch lie from those of many, for each block: what batch normalisation adds as noise.

    For a channel with mean m and variance v over about 2,048 training images, and m_b, v_b over a batch b:
    ``mean_noise`` is the root mean square over channels and batches of ``(m_b - m) / sqrt(v)``, and ``variance_noise``
    that of ``v_b / v - 1``. The network is in evaluation mode, so that every block sees the same input for any size of
    batch. Channels that are constant do not count.

    Returns:
        ``{"batch_size": n, "mean_noise": [...], "variance_noise": [...]}``, a number a block.
    """
    network = copy.deepcopy(model).eval()
    found: dict[int, list[tuple[Tensor, Tensor]]] = {}
    handles = []
    for index, block in enumerate(_blocks(network)):

        def look(block: Any, inputs: tuple[Tensor, ...], output: Tensor, index: int = index) -> None:
            values = block.conv(inputs[0]).double()
            found.setdefault(index, []).append((values.mean(dim=(0, 2, 3)), values.square().mean(dim=(0, 2, 3))))

        handles.append(block.register_forward_hook(look))
    size = batches.batch_size
    for number in range(min(len(batches), max(2, _EXAMPLES // size))):
        network(batches.training_batch(epoch, number)[0])
    for handle in handles:
        handle.remove()
    noises = [_noise(found[index]) for index in sorted(found)]
    return {
        "batch_size": size,
        "mean_noise": [mean for mean, _ in noises],
        "variance_noise": [variance for _, variance in noises],
    }


def _noise(moments: Sequence[tuple[Tensor, Tensor]]) -> tuple[float, float]:
    means = torch.stack([mean for mean, _ in moments])
    squares = torch.stack([square for _, square in moments])
    variances = squares - means.square()
    mean = means.mean(dim=0)
    variance = squares.mean(dim=0) - mean.square()
    varies = variance > 1e-12 * squares.mean(dim=0)
    mean_noise = ((means - mean)[:, varies].square() / variance[varies]).mean().sqrt()
    variance_noise = (variances[:, varies] / variance[varies] - 1).square().mean().sqrt()
    return float(mean_noise), float(variance_noise)


@torch.no_grad()
def modes(model: nn.Module, batches: EvaluationBatches, batch_size: int) -> dict[str, float]:
    """Accuracy of the same weights on the same images with the statistics of training and with those of evaluation.

    The images are about 2,048 of the validation split, in its order and not augmented, so that nothing but the
    statistics differs; in training mode they come in batches of ``batch_size``.

    Returns:
        ``{"training_mode_accuracy": a, "evaluation_mode_accuracy": b}``.
    """
    network = copy.deepcopy(model)
    images, labels = batches.examples(_EXAMPLES)
    usable = len(labels) // batch_size * batch_size or len(labels)
    images, labels = images[:usable], labels[:usable]
    accuracies = {}
    for name, training in (("training_mode_accuracy", True), ("evaluation_mode_accuracy", False)):
        network.train(training)
        size = batch_size if training else 500
        right = sum(
            int((network(part).argmax(dim=1) == wanted).sum())
            for part, wanted in zip(images.split(size), labels.split(size), strict=True)
        )
        accuracies[name] = right / usable
    return accuracies
