"""A run that is cut off anywhere and started again ends with the same weights, bit for bit, and the same history."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import nn

from fastdl import models
from fastdl.data import ImageDataset
from fastdl.training import CheckpointPolicy, RunConfig, RunResult, train_classifier
from fastdl.training import checkpoint as checkpoint_module
from fastdl.training import run as run_module
from fastdl.training.batches import TrainingBatches
from fastdl.training.checkpoint import latest_checkpoint
from fastdl.training.module import Classifier
from tests.training.conftest import make_config

EVERY_STEP = CheckpointPolicy(every_steps=1)
EPOCHS, STEPS = 3, 4


class Cut(BaseException):
    """Stands for the end of the process: nothing catches it but the test."""


def cut_at(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, call: int, *, after: bool = False) -> None:
    """Replace a function by one that raises ``Cut`` before, or right after, its call number ``call`` (from 1 on)."""
    original = getattr(owner, name)
    calls = 0

    def cutting(*arguments: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == call and not after:
            raise Cut
        result = original(*arguments, **options)
        if calls == call:
            raise Cut
        return result

    monkeypatch.setattr(owner, name, cutting)


def weights(directory: Path) -> dict[str, torch.Tensor]:
    return safetensors.torch.load_file(directory / "weights.safetensors")


def assert_same(directory: Path, result: RunResult, expected_directory: Path, expected: RunResult) -> None:
    found, wanted = weights(directory), weights(expected_directory)
    assert found.keys() == wanted.keys()
    for name in wanted:
        assert torch.equal(found[name], wanted[name]), name
    assert result.history == expected.history
    for field in ("status", "steps", "test_accuracy", "test_loss", "validation_accuracy"):
        assert getattr(result, field) == getattr(expected, field), field


Reference = tuple[RunConfig, Path, RunResult]


@pytest.fixture(scope="module")
def uninterrupted(stripes: ImageDataset, tmp_path_factory: pytest.TempPathFactory) -> Reference:
    directory = tmp_path_factory.mktemp("uninterrupted")
    config = make_config(stripes)
    return config, directory, train_classifier(config, stripes, directory)


def test_the_run_learns_and_leaves_what_it_promises(uninterrupted: Reference) -> None:
    config, directory, result = uninterrupted
    assert (result.status, result.steps, len(result.history)) == ("finished", EPOCHS * STEPS, EPOCHS)
    assert result.history[-1]["train_loss"] < 0.7 * result.history[0]["train_loss"]
    assert [row["step"] for row in result.history] == [4, 8, 12]
    assert result.config == config.to_dict()
    for name in ("config.json", "result.json", "weights.safetensors", "logs/csv/attempt-1/metrics.csv"):
        assert (directory / name).is_file()
    assert list((directory / "logs" / "tensorboard").glob("events.*"))
    checkpoints = sorted(path.name for path in (directory / "checkpoints").iterdir())
    assert checkpoints == ["step-00000008.ckpt", "step-00000012.ckpt"]


@pytest.mark.parametrize("step", range(1, EPOCHS * STEPS + 1))
@pytest.mark.parametrize("every", [1, 3, None], ids=["every step", "every third step", "every epoch"])
def test_cut_off_in_the_middle_of_a_step(
    uninterrupted: Reference,
    stripes: ImageDataset,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    step: int,
    every: int | None,
) -> None:
    config, expected_directory, expected = uninterrupted
    policy = CheckpointPolicy(every_steps=every)
    with monkeypatch.context() as patch:
        cut_at(patch, TrainingBatches, "training_batch", step)
        with pytest.raises(Cut):
            train_classifier(config, stripes, tmp_path, policy=policy)
    result = train_classifier(config, stripes, tmp_path, policy=policy)
    assert_same(tmp_path, result, expected_directory, expected)


CUTS: dict[str, tuple[Any, str, int, bool]] = {
    "before a checkpoint within an epoch": (checkpoint_module.ResumableCheckpoint, "_save", 2, False),
    "after a checkpoint within an epoch": (checkpoint_module.ResumableCheckpoint, "_save", 6, True),
    "before the checkpoint at the end of an epoch": (checkpoint_module.ResumableCheckpoint, "_save", 4, False),
    "after the checkpoint at the end of an epoch": (checkpoint_module.ResumableCheckpoint, "_save", 8, True),
    "after the last checkpoint": (checkpoint_module.ResumableCheckpoint, "_save", 12, True),
    "between writing a checkpoint and its name": (os, "fsync", 6, True),
    "while validating": (Classifier, "validation_step", 2, True),
    "after validating": (Classifier, "on_validation_epoch_end", 2, True),
    "before the weights are written": (run_module.safetensors.torch, "save", 1, False),  # type: ignore[attr-defined]
    "before the test": (Classifier, "test_step", 1, False),
    "before the result is written": (run_module, "write_json", 2, False),
}


@pytest.mark.parametrize("place", CUTS)
def test_cut_off_elsewhere(
    uninterrupted: Reference, stripes: ImageDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    config, expected_directory, expected = uninterrupted
    owner, name, call, after = CUTS[place]
    with monkeypatch.context() as patch:
        cut_at(patch, owner, name, call, after=after)
        with pytest.raises(Cut):
            train_classifier(config, stripes, tmp_path, policy=EVERY_STEP)
    assert not (tmp_path / "result.json").exists()
    result = train_classifier(config, stripes, tmp_path, policy=EVERY_STEP)
    assert_same(tmp_path, result, expected_directory, expected)


def test_cut_off_at_every_second_step(
    uninterrupted: Reference, stripes: ImageDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, expected_directory, expected = uninterrupted
    attempts = 0
    while not (tmp_path / "result.json").exists():
        attempts += 1
        with monkeypatch.context() as patch:
            cut_at(patch, TrainingBatches, "training_batch", 3)
            try:
                result = train_classifier(config, stripes, tmp_path, policy=EVERY_STEP)
            except Cut:
                assert attempts < 20
    assert attempts > 4
    assert_same(tmp_path, result, expected_directory, expected)
    assert len(list((tmp_path / "logs" / "csv").iterdir())) == attempts


def test_every_batch_is_seen_once_and_in_order(
    stripes: ImageDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = TrainingBatches.training_batch
    seen: list[tuple[int, int]] = []
    cuts = [6, 9]

    def recording(self: TrainingBatches, epoch: int, number: int) -> tuple[torch.Tensor, torch.Tensor]:
        if cuts and len(seen) == cuts[0]:
            cuts.pop(0)
            raise Cut
        seen.append((epoch, number))
        return original(self, epoch, number)

    monkeypatch.setattr(TrainingBatches, "training_batch", recording)
    config = make_config(stripes)
    for _ in range(2):
        with pytest.raises(Cut):
            train_classifier(config, stripes, tmp_path, policy=EVERY_STEP)
    train_classifier(config, stripes, tmp_path, policy=EVERY_STEP)
    assert seen == [(epoch, number) for epoch in range(EPOCHS) for number in range(STEPS)]


@pytest.mark.parametrize("damage", ["truncated", "flipped", "empty", "text"])
def test_a_damaged_checkpoint_is_reported_and_its_predecessor_used(
    uninterrupted: Reference,
    stripes: ImageDataset,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    damage: str,
) -> None:
    config, expected_directory, expected = uninterrupted
    with monkeypatch.context() as patch:
        cut_at(patch, TrainingBatches, "training_batch", 7)
        with pytest.raises(Cut):
            train_classifier(config, stripes, tmp_path, policy=EVERY_STEP)
    newest = tmp_path / "checkpoints" / "step-00000006.ckpt"
    content = bytearray(newest.read_bytes())
    # Into the pixels of a tensor, where no structure tells the damage but the checksum of the record does.
    weight = next(iter(torch.load(newest, weights_only=True)["state_dict"].values()))
    content[content.index(weight.contiguous().numpy().tobytes()[:64]) + 20] ^= 1
    newest.write_bytes({"truncated": content[:-300], "flipped": content, "empty": b"", "text": b"hello"}[damage])
    result = train_classifier(config, stripes, tmp_path, policy=EVERY_STEP)
    assert f"The checkpoint {newest} cannot be read" in caplog.text
    assert newest.with_suffix(".damaged").exists()
    assert_same(tmp_path, result, expected_directory, expected)


def test_with_all_checkpoints_damaged_the_run_begins_anew(
    uninterrupted: Reference, stripes: ImageDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, expected_directory, expected = uninterrupted
    with monkeypatch.context() as patch:
        cut_at(patch, TrainingBatches, "training_batch", 7)
        with pytest.raises(Cut):
            train_classifier(config, stripes, tmp_path, policy=EVERY_STEP)
    for path in (tmp_path / "checkpoints").iterdir():
        path.write_bytes(b"damaged")
    assert latest_checkpoint(tmp_path / "checkpoints") is None
    assert_same(tmp_path, train_classifier(config, stripes, tmp_path), expected_directory, expected)


class Evil:
    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return os.system, ("touch proof",)


def test_a_checkpoint_cannot_run_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"global_step": 3, "evil": Evil()}, tmp_path / "step-00000003.ckpt")
    assert latest_checkpoint(tmp_path) is None
    assert not (tmp_path / "proof").exists()


class WithDropout(nn.Module):
    """Draws from torch's global random numbers in every step."""

    def __init__(self, in_channels: int, num_classes: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(in_channels, 8, 3), nn.Flatten(), nn.Dropout(0.3), nn.Linear(288, num_classes)
        )

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.layers(images)
        return logits


def test_random_numbers_of_the_model_go_on_where_they_were(
    stripes: ImageDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_module, "build_model", lambda name, **arguments: WithDropout(**arguments))
    config = make_config(stripes, arguments={})
    expected = train_classifier(config, stripes, tmp_path / "whole")
    with monkeypatch.context() as patch:
        cut_at(patch, TrainingBatches, "training_batch", 7)
        with pytest.raises(Cut):
            train_classifier(config, stripes, tmp_path / "cut", policy=EVERY_STEP)
    torch.rand(100)
    result = train_classifier(config, stripes, tmp_path / "cut", policy=EVERY_STEP)
    assert_same(tmp_path / "cut", result, tmp_path / "whole", expected)


def test_a_run_that_stopped_early_stays_stopped(
    stripes: ImageDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_config(stripes, epochs=9, early_stopping_patience=1, learning_rate=1e-9)
    expected = train_classifier(config, stripes, tmp_path / "whole")
    assert expected.steps < 9 * STEPS
    with monkeypatch.context() as patch:
        cut_at(patch, Classifier, "test_step", 1)
        with pytest.raises(Cut):
            train_classifier(config, stripes, tmp_path / "cut")
    assert_same(tmp_path / "cut", train_classifier(config, stripes, tmp_path / "cut"), tmp_path / "whole", expected)


def test_a_finished_run_is_not_run_again(
    uninterrupted: Reference, stripes: ImageDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, directory, expected = uninterrupted
    monkeypatch.setattr(run_module, "_fit", lambda *arguments: pytest.fail("trained again"))
    assert train_classifier(config, stripes, directory) == expected


def test_another_configuration_is_refused_with_what_differs(uninterrupted: Reference, stripes: ImageDataset) -> None:
    _, directory, _ = uninterrupted
    other = make_config(stripes, learning_rate=0.2, epochs=5)
    with pytest.raises(
        ValueError, match=r"optimizer\.learning_rate: 0\.1 there, 0\.2 here; training\.epochs: 3 there, 5 here"
    ):
        train_classifier(other, stripes, directory)


def test_the_second_of_two_equal_runs_equals_the_first(
    uninterrupted: Reference, stripes: ImageDataset, tmp_path: Path
) -> None:
    config, directory, expected = uninterrupted
    torch.manual_seed(12345)
    assert_same(tmp_path, train_classifier(config, stripes, tmp_path), directory, expected)
    assert (
        weights(tmp_path).keys()
        == models.build_model("conv_network", in_channels=1, num_classes=4, depth=2, width=8).state_dict().keys()
    )


def test_a_full_disk_costs_checkpoints_and_not_the_run(
    stripes: ImageDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Every second checkpoint finds no room; cut off then, the run continues from the one before."""
    import errno
    from contextlib import contextmanager

    from fastdl.training import TimeLimitReached, checkpoint

    config = make_config(stripes)
    expected = train_classifier(config, stripes, tmp_path / "whole")
    original, attempts = checkpoint.atomic_write, 0

    @contextmanager
    def crowded(path: Path):  # type: ignore[no-untyped-def]
        nonlocal attempts
        attempts += 1
        with original(path) as file:
            yield file
            if attempts % 2 == 0:
                raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoint, "atomic_write", crowded)
    result = train_classifier(config, stripes, tmp_path / "crowded", policy=EVERY_STEP)
    assert "could not be written" in caplog.text
    assert "No space left on device" in caplog.text
    assert_same(tmp_path / "crowded", result, tmp_path / "whole", expected)
    attempts = 0
    for _ in range(40):
        try:
            result = train_classifier(
                config, stripes, tmp_path / "cut", policy=CheckpointPolicy(every_steps=1, deadline=0.0)
            )
            break
        except TimeLimitReached:
            pass
    assert_same(tmp_path / "cut", result, tmp_path / "whole", expected)
    assert not list((tmp_path / "cut" / "checkpoints").glob(".*"))
