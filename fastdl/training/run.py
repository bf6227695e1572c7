"""One training run from its configuration to its result, interrupted as often as it may be."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import safetensors.torch
import torch
from lightning.pytorch.callbacks import Callback, EarlyStopping
from lightning.pytorch.trainer.states import TrainerStatus
from lightning.pytorch.utilities.exceptions import SIGTERMException
from torch import nn

import fastdl
from fastdl.data import ImageDataset, hold_out_validation, limit_training_examples
from fastdl.data.files import atomic_write, write_json
from fastdl.models import build_model, derive_seed, initialize_weights
from fastdl.training.batches import BatchNumbers, EvaluationBatches, TrainingBatches
from fastdl.training.checkpoint import AtomicCheckpointIO, CheckpointPolicy, ResumableCheckpoint, latest_checkpoint
from fastdl.training.config import RunConfig, differences
from fastdl.training.environment import describe_environment
from fastdl.training.evidence import EVIDENCE, GradientEvidence, batch_statistics, modes
from fastdl.training.module import Classifier, DivergenceError
from fastdl.training.progress import RunProgress
from fastdl.training.result import RunResult, load_result, record_test_evaluation
from fastdl.training.settings import deterministic, quiet_lightning
from fastdl.training.speed import fused_share
from fastdl.training.tracking import finish, make_loggers

__all__ = ["RunResult", "load_result", "train_classifier"]

_LOGGER = logging.getLogger(__name__)
_EVALUATION_BATCH = 500


def train_classifier(
    config: RunConfig,
    dataset: ImageDataset,
    directory: Path,
    *,
    policy: CheckpointPolicy | None = None,
    description: str = "training",
    evidence: Sequence[str] = (),
    measure_speed: bool = False,
    callbacks: Sequence[Callback] = (),
    trackers: Sequence[str] = ("tensorboard",),
    group: str = "fastdl",
    evaluate_test: bool = True,
) -> RunResult:
    """Train a model on a data set, and evaluate it once on the test split.

    The folder holds ``config.json``, ``checkpoints/``, ``logs/`` (CSV and JSONL, one file for each attempt, and what
    ``trackers`` write), ``test-evaluations.jsonl`` with a line for every look at the test split, and at the end
    ``weights.safetensors`` and ``result.json``. Called again with the same configuration, it returns the result of a
    finished run, and continues an unfinished one from its newest good checkpoint: data order, augmentation, optimizer,
    metrics and random numbers go on where they were, and the final weights equal those of an
    uninterrupted run bit for bit.

    Args:
        config: everything that the result depends on.
        dataset: the data that ``config.data`` names, without a validation split.
        directory: of this run alone.
        policy: when to write checkpoints.
        description: what to call the run where its progress is shown.
        evidence: what to measure beside the accuracy, of `fastdl.training.evidence.EVIDENCE`; the model has ``blocks``.
        measure_speed: find out also which share of a step's time the fused ops take; a few steps more.
        callbacks: Lightning's, for the training; they must not change it.
        trackers: where else to log, of `fastdl.training.tracking.TRACKERS`.
        group: what trackers group the run under, such as the name of an experiment.
        evaluate_test: without it the test split is not looked at, and no weights are written.

    Raises:
        TimeLimitReached: ``policy.deadline`` has passed; a checkpoint is written, call again to continue.
        ValueError: ``evidence`` or ``trackers`` hold an unknown name, the folder holds a run of another configuration,
            or the configuration does not fit the data.
        KeyboardInterrupt: the user interrupted; call again to continue.
    """
    if (config.data.dataset, config.data.fingerprint) != (dataset.name, dataset.fingerprint):
        wanted = f"{config.data.dataset} with fingerprint {config.data.fingerprint}"
        raise ValueError(f"config.data names {wanted}, got the data set {dataset.name} with {dataset.fingerprint}")
    if unknown := set(evidence) - set(EVIDENCE):
        raise ValueError(f"evidence must be of {', '.join(EVIDENCE)}, got {', '.join(sorted(unknown))}")
    directory.mkdir(parents=True, exist_ok=True)
    _claim(directory, config)
    if (finished := load_result(directory)) is not None:
        return finished
    device = torch.device(config.training.device)
    data = hold_out_validation(dataset, config.data.validation_fraction, config.data.validation_seed)
    if config.data.train_examples is not None:
        data = limit_training_examples(data, config.data.train_examples, config.data.validation_seed)
    with (
        deterministic(derive_seed(config.seed, "global"), config.training.threads),
        quiet_lightning(),
        fastdl.use_backend(config.training.backend),
    ):
        model = _make_model(config, data)
        batches = _make_batches(config, data, device)
        module = Classifier(model, config, len(data.class_names), *batches, _describe(data))
        policy = policy or CheckpointPolicy()
        watch = GradientEvidence(len(batches[0])) if "gradients" in evidence else None
        watching = [*callbacks, *([watch] if watch else [])]
        status, steps = _fit(config, module, directory, policy, description, watching, trackers, group)
        finished_well = status == "finished"
        found: dict[str, Any] = {"gradients": watch.rows} if watch else {}
        if finished_well:
            found |= _look_back(config, module, evidence)
        share = fused_share(model, batches[0]) if measure_speed and finished_well else None
        test = _test(config, module, directory) if finished_well and evaluate_test else {}
        result = RunResult(
            status=status,
            config=config.to_dict(),
            steps=steps,
            parameters=sum(parameter.numel() for parameter in model.parameters()),
            history=module.history,
            validation_accuracy=module.history[-1]["validation_accuracy"] if finished_well else None,
            test_accuracy=test.get("test/accuracy"),
            test_loss=test.get("test/loss") if math.isfinite(test.get("test/loss", math.nan)) else None,
            seconds=module.seconds,
            environment=describe_environment(),
            evidence=_without_infinities(found),
            speed={
                "images_per_second": steps * batches[0].batch_size / module.seconds if module.seconds else None,
                "fused_share": share,
            },
        )
    write_json(directory / "result.json", asdict(result))
    return result


def _claim(directory: Path, config: RunConfig) -> None:
    """Write the configuration into the folder, or compare it with the one that is there."""
    path = directory / "config.json"
    try:
        present = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        write_json(path, config.to_dict())
        return
    except ValueError as error:
        raise ValueError(f"{path} is not the configuration of a run: {error}") from error
    if changed := differences(present, json.loads(json.dumps(config.to_dict()))):
        raise ValueError(f"{directory} holds a run of another configuration ({'; '.join(changed)})")


def _make_model(config: RunConfig, data: ImageDataset) -> nn.Module:
    model = build_model(
        config.model.name,
        in_channels=data.image_shape[0],
        num_classes=len(data.class_names),
        **config.model.arguments,
    )
    initialize_weights(model, config.seed)
    converted: nn.Module = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return converted


def _make_batches(
    config: RunConfig, data: ImageDataset, device: torch.device
) -> tuple[TrainingBatches, EvaluationBatches, EvaluationBatches]:
    training = TrainingBatches(
        data.train,
        batch_size=config.training.batch_size,
        mean=data.mean,
        std=data.std,
        device=device,
        seed=config.seed,
        crop_padding=config.data.crop_padding,
        random_flip=config.data.random_flip,
    )
    validation, test = (
        EvaluationBatches(split, batch_size=_EVALUATION_BATCH, mean=data.mean, std=data.std, device=device)
        for split in (data.splits["validation"], data.test)
    )
    return training, validation, test


def _look_back(config: RunConfig, module: Classifier, evidence: Sequence[str]) -> dict[str, Any]:
    """The evidence that the trained network gives."""
    found: dict[str, Any] = {}
    if "batch_statistics" in evidence:
        # An epoch that was not trained on has an order and an augmentation like any other.
        found["batch_statistics"] = batch_statistics(module.model, module.training_batches, config.training.epochs)
    if "modes" in evidence:
        found["modes"] = modes(module.model, module.validation_batches, module.training_batches.batch_size)
    return found


def _without_infinities(value: Any) -> Any:
    """The same with None for numbers that JSON does not know, as the gradients of a run that diverges are."""
    if isinstance(value, dict):
        return {key: _without_infinities(part) for key, part in value.items()}
    if isinstance(value, list):
        return [_without_infinities(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _fit(
    config: RunConfig,
    module: Classifier,
    directory: Path,
    policy: CheckpointPolicy,
    description: str,
    watching: Sequence[Callback],
    trackers: Sequence[str],
    group: str,
) -> tuple[str, int]:
    """Train to the end and return the status, "finished" or "diverged", and the steps taken."""
    checkpoints = directory / "checkpoints"
    checkpoint = latest_checkpoint(checkpoints)
    attempt = 1 + sum(1 for _ in (directory / "logs" / "csv").glob("attempt-*"))
    loggers = make_loggers(
        directory,
        attempt,
        trackers,
        run_name=directory.name,
        group=group,
        resumed_step=checkpoint[1] if checkpoint else 0,
        config=config.to_dict(),
    )
    # Last, so that what the others know of a step is in the checkpoint that is written after it.
    callbacks: list[Callback] = [*watching, ResumableCheckpoint(checkpoints, policy), RunProgress(description)]
    if (patience := config.training.early_stopping_patience) is not None:
        callbacks.append(EarlyStopping("validation/accuracy", patience=patience, mode="max"))
    numbers = BatchNumbers(len(module.training_batches))
    trainer = _trainer(
        config,
        directory,
        max_epochs=config.training.epochs,
        gradient_clip_val=config.training.gradient_clip_norm,
        callbacks=callbacks,
        logger=loggers,
        log_every_n_steps=min(50, len(numbers)),
    )
    try:
        trainer.fit(
            module,
            train_dataloaders=numbers,
            val_dataloaders=range(len(module.validation_batches)),
            ckpt_path=checkpoint[0] if checkpoint else None,
        )
    except DivergenceError as error:
        _LOGGER.warning("%s diverged: %s.", description, error)
        finish(loggers, "failed")
        return "diverged", error.step
    except SIGTERMException as stop:
        raise SystemExit(128 + 15) from stop
    except SystemExit as stop:
        if trainer.state.status == TrainerStatus.INTERRUPTED:  # what Lightning makes of a KeyboardInterrupt
            raise KeyboardInterrupt from stop
        raise
    finish(loggers, "success")
    return "finished", trainer.global_step


def _describe(data: ImageDataset) -> dict[str, Any]:
    """What one has to know of the data to use weights that were trained on it."""
    return {
        "image_shape": list(data.image_shape),
        "class_names": list(data.class_names),
        "mean": list(data.mean),
        "std": list(data.std),
    }


def with_sorted_metadata(content: bytes) -> bytes:
    """The same safetensors file with its metadata in order: the library's own is that of a hash map, by chance.

    Two runs of one configuration then end with files that are equal byte for byte. The places of tensors are counted
    from the end of the header, whose length is padded to a multiple of 8.
    """
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + content[8 + length :]


def _test(config: RunConfig, module: Classifier, directory: Path) -> dict[str, float]:
    """Write the final weights and evaluate them on the test split."""
    weights = {name: value.detach().cpu().contiguous() for name, value in module.evaluated.state_dict().items()}
    metadata = {"config": json.dumps(config.to_dict()), "data": json.dumps(module.description)}
    with atomic_write(directory / "weights.safetensors") as file:
        file.write(with_sorted_metadata(safetensors.torch.save(weights, metadata)))
    record_test_evaluation(directory, int(module.history[-1]["step"]))
    trainer = _trainer(config, directory, logger=False, enable_checkpointing=False)
    (metrics,) = trainer.test(module, dataloaders=range(len(module.test_batches)), verbose=False)
    return {name: float(value) for name, value in metrics.items()}


def _trainer(config: RunConfig, directory: Path, **arguments: Any) -> pl.Trainer:
    device = torch.device(config.training.device)
    return pl.Trainer(
        accelerator=device.type,
        devices=1 if device.index is None else [device.index],
        precision=config.training.precision,  # type: ignore[arg-type]
        default_root_dir=directory,
        num_sanity_val_steps=0,
        enable_model_summary=False,
        enable_progress_bar=False,
        plugins=[AtomicCheckpointIO()],
        **arguments,
    )
