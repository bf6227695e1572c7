"""Checkpoints that are whole or absent, written often, and never unpickled beyond tensors and plain values."""

from __future__ import annotations

import logging
import time
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch.callbacks import Checkpoint

from fastdl.data.files import atomic_write

__all__ = ["AtomicCheckpointIO", "CheckpointPolicy", "ResumableCheckpoint", "TimeLimitReached", "latest_checkpoint"]

_LOGGER = logging.getLogger(__name__)


class TimeLimitReached(Exception):  # noqa: N818 (nothing went wrong)
    """The time for the training is up; what was done is in a checkpoint."""


@dataclass(frozen=True)
class CheckpointPolicy:
    """When to write a checkpoint; one is always written at the end of an epoch. It has no influence on the result.

    Attributes:
        every_seconds: also within an epoch when so much time has passed since the last one.
        every_steps: also after every so many steps; None writes by time alone.
        keep: number of checkpoints that stay, so that a damaged one has a predecessor.
        deadline: write one and raise `TimeLimitReached` when ``time.monotonic()`` has come to this; None never.
    """

    every_seconds: float = 30.0
    every_steps: int | None = None
    keep: int = 2
    deadline: float | None = None


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint under a temporary name in its own folder, then renames it.

    Lightning's own writer puts its temporary file into the system's temporary folder; where that lies on another file
    system, moving it is a copy that a kill can cut short.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        with atomic_write(path) as file:
            torch.save(checkpoint, file)

    def load_checkpoint(self, path: Any, map_location: Any = "cpu", weights_only: bool | None = None) -> dict[str, Any]:
        content: dict[str, Any] = torch.load(path, map_location=map_location, weights_only=True)
        return content


class ResumableCheckpoint(Checkpoint):
    """Writes ``step-<steps>.ckpt`` as the policy says and deletes all but the newest."""

    def __init__(self, directory: Path, policy: CheckpointPolicy) -> None:
        self._directory = directory
        self._policy = policy
        self._last = time.monotonic()

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._last = time.monotonic()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.is_last_batch:  # the end of the epoch follows, with metrics and history complete
            return
        every = self._policy.every_steps
        due = every is not None and trainer.global_step % every == 0
        late = self._is_late()
        if due or late or time.monotonic() - self._last >= self._policy.every_seconds:
            self._save(trainer)
        if late:
            raise TimeLimitReached

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._save(trainer)
        if self._is_late() and trainer.current_epoch + 1 < (trainer.max_epochs or 0):
            raise TimeLimitReached

    def _is_late(self) -> bool:
        return self._policy.deadline is not None and time.monotonic() >= self._policy.deadline

    def _save(self, trainer: pl.Trainer) -> None:
        self._last = time.monotonic()
        path = self._directory / f"step-{trainer.global_step:08d}.ckpt"
        try:
            for logger in trainer.loggers:
                logger.save()
            trainer.save_checkpoint(path)
        except OSError as error:
            # A full disk may have room again before the next one. The run itself needs none to go on.
            _LOGGER.warning(
                "The checkpoint %s could not be written (%s). Training goes on; if it is interrupted now, it continues "
                "from the checkpoint before.",
                path,
                error,
            )
            return
        for old in _newest_first(self._directory)[self._policy.keep :]:
            old.unlink(missing_ok=True)


def latest_checkpoint(directory: Path) -> tuple[Path, int] | None:
    """Return the newest checkpoint that can be read, and its number of steps.

    A damaged one is reported, renamed to ``*.damaged`` and passed over. None means to start from the beginning.
    """
    for path in _newest_first(directory):
        try:
            # torch.load does not look at the checksums that torch.save wrote: a flipped bit in a weight goes unseen.
            with zipfile.ZipFile(path) as records:
                if (wrong := records.testzip()) is not None:
                    raise ValueError(f"wrong checksum of {wrong}")
            content = AtomicCheckpointIO().load_checkpoint(path)
            return path, int(content["global_step"])
        except Exception as error:
            # What a damaged file raises depends on where the damage is: zip, pickle, key and size errors among others.
            damaged = path.replace(path.with_suffix(".damaged"))
            reason = str(error).split("\n", 1)[0] or type(error).__name__
            _LOGGER.warning("The checkpoint %s cannot be read (%s). It is kept as %s.", path, reason, damaged.name)
    return None


def _newest_first(directory: Path) -> list[Path]:
    return sorted(directory.glob("step-*.ckpt"), reverse=True)
