"""How far a run is: a bar where a person is watching, otherwise a line now and then."""

from __future__ import annotations

import sys
import time
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback
from tqdm import tqdm  # type: ignore[import-untyped]

__all__ = ["RunProgress"]


class RunProgress(Callback):
    """Shows the steps of the whole run, with the latest validation accuracy.

    On a terminal that is a bar which vanishes at the end. Elsewhere (a log file, a pipe) it is a line at the end of an
    epoch, at most one in ``seconds_between_lines``, so that short runs stay silent.
    """

    def __init__(self, description: str, seconds_between_lines: float = 30.0) -> None:
        self._description = description
        self._between = seconds_between_lines
        self._interactive = sys.stderr.isatty()
        self._last_line = time.monotonic()
        self._bar: Any = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self._interactive:
            total = int(trainer.num_training_batches) * (trainer.max_epochs or 1)
            self._bar = tqdm(
                total=total,
                initial=trainer.global_step,
                desc=self._description,
                unit="step",
                leave=False,
                file=sys.stderr,
            )

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self._bar is not None:
            self._bar.update(trainer.global_step - self._bar.n)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        accuracy = float(trainer.callback_metrics["validation/accuracy"])
        if self._bar is not None:
            self._bar.set_postfix(validation=f"{accuracy:.3f}")
        elif time.monotonic() - self._last_line >= self._between:
            self._last_line = time.monotonic()
            epoch = f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}"
            print(f"{self._description}, {epoch}: validation accuracy {accuracy:.3f}", file=sys.stderr, flush=True)

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None
