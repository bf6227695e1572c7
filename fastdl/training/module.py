"""Training a classifier on batches by number, as a Lightning module that can stop and continue anywhere."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from typing import Any

import lightning.pytorch as pl
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import EarlyStopping
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel
from torchmetrics import MeanMetric
from torchmetrics.classification import MulticlassAccuracy

from fastdl.models import derive_seed
from fastdl.training.batches import EvaluationBatches, TrainingBatches
from fastdl.training.config import RunConfig, differences
from fastdl.training.cuda_graph import capture, has_hooks
from fastdl.training.environment import describe_environment, environment_changes
from fastdl.training.mixing import mix
from fastdl.training.optimizer import make_optimizer, warmup_cosine, weight_averaging

__all__ = ["Classifier", "DivergenceError"]

_LOGGER = logging.getLogger(__name__)
_CHECK_EVERY = 20  # steps between two looks at the loss on a GPU, since each look waits for all that is queued there


class DivergenceError(ArithmeticError):
    """The loss became infinite or not a number.

    Attributes:
        step: optimizer steps taken before that was seen.
    """

    def __init__(self, step: int, loss: float) -> None:
        self.step = step
        self.loss = loss
        super().__init__(f"the loss is {loss} after {step} steps")


class Classifier(pl.LightningModule):
    """Cross entropy on the training batches, accuracy on the validation and test batches.

    The checkpoint holds all that the rest of the run depends on: weights and their running mean, optimizer and schedule
    (Lightning's part), the running metrics of an unfinished epoch, the history of the finished ones, and the state of
    torch's random number generators.

    Args:
        model: maps images to logits; its parameters are the ones that are trained.
        config: of the run.
        class_count: length of the logits.
        training, validation, test: the batches.
        description: of the data, for whoever uses the weights of a checkpoint.
    """

    def __init__(
        self,
        model: nn.Module,
        config: RunConfig,
        class_count: int,
        training: TrainingBatches,
        validation: EvaluationBatches,
        test: EvaluationBatches,
        description: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.model = model
        self.average: AveragedModel | None = None
        if (decay := config.training.average_decay) is not None:
            self.average = AveragedModel(model, multi_avg_fn=weight_averaging(decay)).requires_grad_(False)
        self.config = config
        self.class_count = class_count
        self.description = dict(description or {})
        self.training_batches = training
        self.validation_batches = validation
        self.test_batches = test
        self.history: list[dict[str, float | int]] = []
        self._validation_result: dict[str, float] = {}
        self._seconds_before = 0.0
        self._started: float | None = None
        self._random_state: dict[str, Any] | None = None
        # In a tuple, so that it is no part of this module, whose state_dict would hold the network twice.
        self._captured: tuple[Callable[[Tensor], Tensor] | None] | None = None
        for stage in ("train", "validation", "test"):
            loss, accuracy = MeanMetric(), MulticlassAccuracy(class_count, average="micro")
            # In the checkpoint, so that an epoch's curve has no gap where the run was interrupted.
            loss.persistent(stage == "train")
            accuracy.persistent(stage == "train")
            self.add_module(f"{stage}_loss", loss)
            self.add_module(f"{stage}_accuracy", accuracy)

    @property
    def seconds(self) -> float:
        """Time spent in training so far, over all attempts at this run."""
        return self._seconds_before + (time.monotonic() - self._started if self._started is not None else 0.0)

    @property
    def evaluated(self) -> nn.Module:
        """The model that is evaluated and kept: with the running mean of the weights if there is one."""
        if self.average is None:
            return self.model
        module: nn.Module = self.average.module
        return module

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.evaluated(images)
        return logits

    def training_step(self, number: int, batch_idx: int) -> Tensor:
        if number != batch_idx:
            # Lightning's progress and the loader's must agree, or a resumed run would repeat or skip a batch.
            raise RuntimeError(
                f"the data loader is at batch {number} of epoch {self.current_epoch}, Lightning at {batch_idx}"
            )
        images, labels = self.training_batches.training_batch(self.current_epoch, number)
        data, targets = self.config.data, labels
        if data.mixup_alpha or data.cutmix_alpha:
            images, targets = mix(
                images,
                labels,
                self.class_count,
                mixup_alpha=data.mixup_alpha,
                cutmix_alpha=data.cutmix_alpha,
                seed=derive_seed(self.config.seed, "mixing", self.current_epoch, number),
            )
            labels = targets.argmax(dim=1)  # accuracy is measured against the larger part of a mixed image
        logits = self._network(images)(images)
        loss = F.cross_entropy(logits, targets, label_smoothing=self.config.training.label_smoothing)
        if images.device.type == "cpu" or self.global_step % _CHECK_EVERY == 0:
            self._check(loss)
        self._update("train", loss, logits, labels)
        self.log("train/step_loss", loss, on_step=True, on_epoch=False, batch_size=len(labels))
        return loss

    def _network(self, images: Tensor) -> Callable[[Tensor], Tensor]:
        """The network in training, captured if that pays; as it is where somebody watches the steps."""
        if images.device.type != "cuda" or has_hooks(self.model):
            return self.model
        if self._captured is None:
            self._captured = (capture(self.model, images, self.config.training.precision),)
        return self._captured[0] or self.model

    def optimizer_step(self, *arguments: Any, **options: Any) -> None:
        super().optimizer_step(*arguments, **options)
        if self.average is not None:  # here, since a checkpoint may be written before any later hook of this module
            self.average.update_parameters(self.model)

    def validation_step(self, number: int, batch_idx: int) -> None:
        self._evaluate("validation", *self.validation_batches.batch(number))

    def test_step(self, number: int, batch_idx: int) -> None:
        self._evaluate("test", *self.test_batches.batch(number))

    def on_validation_epoch_end(self) -> None:
        # Logged, so that callbacks which watch a metric find it.
        self._validation_result = self._compute("validation")
        self.log_dict({f"validation/{name}": value for name, value in self._validation_result.items()})

    def on_test_epoch_end(self) -> None:
        self.log_dict({f"test/{name}": value for name, value in self._compute("test").items()})

    def on_train_epoch_end(self) -> None:
        if self.global_step != (expected := (self.current_epoch + 1) * len(self.training_batches)):
            raise RuntimeError(
                f"epoch {self.current_epoch} ended after {self.global_step} steps in place of {expected}"
            )
        train = self._compute("train")
        self._check(torch.tensor(train["loss"] + self._validation_result["loss"]))
        self.log_dict({f"train/{name}": value for name, value in train.items()})
        self.history.append(
            {
                "epoch": self.current_epoch,
                "step": self.global_step,
                "learning_rate": self.optimizers().param_groups[0]["lr"],  # type: ignore[union-attr]
                **{f"train_{name}": value for name, value in train.items()},
                **{f"validation_{name}": value for name, value in self._validation_result.items()},
            }
        )

    def on_train_start(self) -> None:
        self._started = time.monotonic()
        if self._random_state is not None:
            _set_random_state(self._random_state, self.device)
            self._random_state = None
        # A run that had stopped early, and was killed before it was finished, has stopped.
        early = [callback for callback in self.trainer.early_stopping_callbacks if isinstance(callback, EarlyStopping)]
        self.trainer.should_stop |= any(callback.wait_count >= callback.patience for callback in early)

    def on_train_end(self) -> None:
        self._seconds_before, self._started = self.seconds, None

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["fastdl"] = {
            "config": self.config.to_dict(),
            "data": self.description,
            "environment": describe_environment(),
            "history": [dict(row) for row in self.history],
            "seconds": self.seconds,
            "random_state": _get_random_state(self.device),
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        state = checkpoint["fastdl"]
        if changed := differences(state["config"], self.config.to_dict()):
            raise ValueError(f"the checkpoint belongs to another configuration ({'; '.join(changed)})")
        if changes := environment_changes(state["environment"]):
            _LOGGER.warning(
                "The machine differs from that of the attempt before (%s): results may differ in rounding.",
                "; ".join(changes),
            )
        self.history = [dict(row) for row in state["history"]]
        self._seconds_before = state["seconds"]
        # Set when training starts: what happens between here and there may draw random numbers.
        self._random_state = state["random_state"]

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        optimizer = make_optimizer(self.model, self.config.optimizer)
        steps = self.config.training.epochs * len(self.training_batches)
        warmup = round(self.config.optimizer.warmup_fraction * steps)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: warmup_cosine(step, warmup, steps))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def _evaluate(self, stage: str, images: Tensor, labels: Tensor) -> None:
        logits = self.evaluated(images)
        self._update(stage, F.cross_entropy(logits, labels), logits, labels)

    def _update(self, stage: str, loss: Tensor, logits: Tensor, labels: Tensor) -> None:
        self.get_submodule(f"{stage}_loss").update(loss.detach(), weight=len(labels))  # type: ignore[operator]
        self.get_submodule(f"{stage}_accuracy").update(logits.detach(), labels)  # type: ignore[operator]

    def _compute(self, stage: str) -> dict[str, float]:
        """Return and reset the metrics of a stage."""
        values = {}
        for name in ("loss", "accuracy"):
            metric = self.get_submodule(f"{stage}_{name}")
            values[name] = float(metric.compute())  # type: ignore[operator]
            metric.reset()  # type: ignore[operator]
        return values

    def _check(self, loss: Tensor) -> None:
        if not torch.isfinite(loss):
            raise DivergenceError(self.global_step, float(loss.detach()))


def _get_random_state(device: torch.device) -> dict[str, Any]:
    # Asking for the state of a GPU starts CUDA, which a run on the CPU has no use for.
    return {"cpu": torch.get_rng_state(), "cuda": torch.cuda.get_rng_state(device) if device.type == "cuda" else None}


def _set_random_state(state: dict[str, Any], device: torch.device) -> None:
    torch.set_rng_state(state["cpu"].cpu())
    if state["cuda"] is not None:
        torch.cuda.set_rng_state(state["cuda"].cpu(), device)
