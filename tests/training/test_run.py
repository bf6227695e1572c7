"""What a run does besides resuming: diverging, stopping, clipping, reporting, and leaving torch as it was."""

from __future__ import annotations

import csv
import itertools
import json
import logging
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from fastdl.data import ImageDataset
from fastdl.training import CheckpointPolicy, load_result, train_classifier
from fastdl.training import progress as progress_module
from fastdl.training.batches import TrainingBatches
from fastdl.training.config import DataConfig, ModelConfig, OptimizerConfig, RunConfig, TrainingConfig, differences
from fastdl.training.module import Classifier
from fastdl.training.optimizer import make_optimizer, warmup_cosine
from fastdl.training.run import with_sorted_metadata
from tests.training.conftest import make_config


def test_a_run_that_diverges_is_recorded_with_what_it_had(
    stripes: ImageDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = TrainingBatches.training_batch

    def poisoned(self: TrainingBatches, epoch: int, number: int) -> tuple[torch.Tensor, torch.Tensor]:
        images, labels = original(self, epoch, number)
        return (images * float("nan") if (epoch, number) == (1, 2) else images), labels

    monkeypatch.setattr(TrainingBatches, "training_batch", poisoned)
    result = train_classifier(make_config(stripes), stripes, tmp_path)
    assert (result.status, result.steps, len(result.history)) == ("diverged", 6, 1)
    assert result.test_accuracy is result.validation_accuracy is None
    assert not (tmp_path / "weights.safetensors").exists()
    monkeypatch.undo()
    assert train_classifier(make_config(stripes), stripes, tmp_path) == result  # it is not tried again


def test_a_learning_rate_beyond_reason_diverges_by_itself(stripes: ImageDataset, tmp_path: Path) -> None:
    config = make_config(
        stripes,
        learning_rate=1e30,
        gradient_clip_norm=None,
        model=ModelConfig("conv_network", {"depth": 1, "norm": "none"}),
    )
    assert train_classifier(config, stripes, tmp_path).status == "diverged"
    json.loads((tmp_path / "result.json").read_text())


def test_gradients_are_clipped_to_the_norm(
    stripes: ImageDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    norms: list[float] = []
    original = torch.optim.SGD.step

    def recording(self: torch.optim.SGD, closure: Any = None) -> Any:
        with torch.enable_grad():
            loss = closure()
        gradients = [parameter.grad for group in self.param_groups for parameter in group["params"]]
        norms.append(float(torch.linalg.vector_norm(torch.stack([gradient.norm() for gradient in gradients]))))
        original(self)
        return loss

    monkeypatch.setattr(torch.optim.SGD, "step", recording)
    train_classifier(make_config(stripes, gradient_clip_norm=0.01), stripes, tmp_path / "clipped")
    assert len(norms) == 12
    assert max(norms) == pytest.approx(0.01, rel=1e-3)
    norms.clear()
    train_classifier(make_config(stripes, gradient_clip_norm=None), stripes, tmp_path / "free")
    assert max(norms) > 0.1


def test_mixed_precision_computes_in_bfloat16(
    stripes: ImageDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dtypes: set[torch.dtype] = set()
    original = Classifier._update

    def recording(self: Classifier, stage: str, loss: torch.Tensor, logits: torch.Tensor, labels: torch.Tensor) -> None:
        dtypes.add(logits.dtype)
        original(self, stage, loss, logits, labels)

    monkeypatch.setattr(Classifier, "_update", recording)
    result = train_classifier(make_config(stripes, precision="bf16-mixed"), stripes, tmp_path)
    assert dtypes == {torch.bfloat16}
    assert result.status == "finished"
    weights = safetensors.torch.load_file(tmp_path / "weights.safetensors")
    assert {value.dtype for value in weights.values()} == {torch.float32, torch.int64}


def test_early_stopping_waits_for_its_patience(stripes: ImageDataset, tmp_path: Path) -> None:
    config = make_config(stripes, epochs=9, early_stopping_patience=2, learning_rate=1e-9)
    result = train_classifier(config, stripes, tmp_path)
    accuracies = [row["validation_accuracy"] for row in result.history]
    assert 3 <= len(accuracies) < 9
    assert max(accuracies[-2:]) <= max(accuracies[:-2])


def test_the_exported_weights_give_the_reported_accuracy(stripes: ImageDataset, tmp_path: Path) -> None:
    from fastdl.data import hold_out_validation
    from fastdl.models import build_model

    config = make_config(stripes, epochs=8)
    result = train_classifier(config, stripes, tmp_path)
    model = build_model("conv_network", in_channels=1, num_classes=4, **config.model.arguments)
    model.load_state_dict(safetensors.torch.load_file(tmp_path / "weights.safetensors"))
    held = hold_out_validation(stripes)
    images = (stripes.test.images.double() / 255 - held.mean[0]) / held.std[0]
    predicted = model.double().eval()(images).argmax(1)
    assert result.test_accuracy == pytest.approx((predicted == stripes.test.labels).double().mean().item())
    assert result.test_accuracy > 0.8
    assert result.parameters == sum(parameter.numel() for parameter in model.parameters())


def test_one_run_ends_with_the_same_bytes_every_time(tmp_path: Path) -> None:
    weights = {"b.weight": torch.randn(3, 5), "a": torch.arange(7), "c": torch.randn(2).double()}
    metadata = {"data": '{"class_names": ["고양이"]}', "config": "x" * 5, "added": ""}
    contents = {with_sorted_metadata(safetensors.torch.save(weights, metadata)) for _ in range(100)}
    assert len(contents) == 1
    path = tmp_path / "weights.safetensors"
    path.write_bytes(contents.pop())
    with safetensors.safe_open(path, framework="pt") as file:
        assert file.metadata() == metadata
    loaded = safetensors.torch.load_file(path)
    assert loaded.keys() == weights.keys()
    assert all(torch.equal(loaded[name], weights[name]) for name in weights)


def test_logs_hold_the_curves(stripes: ImageDataset, tmp_path: Path) -> None:
    result = train_classifier(make_config(stripes), stripes, tmp_path)
    with (tmp_path / "logs" / "csv" / "attempt-1" / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    found = [float(row["validation/accuracy"]) for row in rows if row["validation/accuracy"]]
    assert found == pytest.approx([row["validation_accuracy"] for row in result.history])
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / "logs" / "tensorboard"))
    events.Reload()
    assert [event.value for event in events.Scalars("train/loss")] == pytest.approx(
        [row["train_loss"] for row in result.history]
    )


def test_torch_and_lightning_are_left_as_they_were(stripes: ImageDataset, tmp_path: Path) -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    level = logging.getLogger("lightning.pytorch").level
    handler = signal.getsignal(signal.SIGINT)
    train_classifier(make_config(stripes), stripes, tmp_path)
    assert torch.equal(torch.rand(3), expected)
    assert not torch.are_deterministic_algorithms_enabled()
    assert torch.utils.deterministic.fill_uninitialized_memory
    assert "CUBLAS_WORKSPACE_CONFIG" not in os.environ
    assert logging.getLogger("lightning.pytorch").level == level
    assert signal.getsignal(signal.SIGINT) is handler


def test_progress_is_a_line_now_and_then_where_nobody_watches(
    stripes: ImageDataset, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    train_classifier(make_config(stripes), stripes, tmp_path / "quiet", description="the run")
    captured = capsys.readouterr()
    assert captured.out == captured.err == ""
    monkeypatch.setattr(progress_module.RunProgress.__init__, "__defaults__", (0.0,))
    train_classifier(make_config(stripes), stripes, tmp_path / "lines", description="the run")
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(":")[0] for line in lines] == [f"the run, epoch {epoch}/3" for epoch in (1, 2, 3)]


def test_progress_is_a_bar_on_a_terminal(
    stripes: ImageDataset, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    train_classifier(make_config(stripes), stripes, tmp_path, description="the run")
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "the run:" in captured.err
    assert "12/12" in captured.err
    assert "validation=" in captured.err


def test_a_changed_machine_is_reported(
    stripes: ImageDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(Classifier, "test_step", lambda *arguments: (_ for _ in ()).throw(KeyError("cut")))
        with pytest.raises(KeyError):
            train_classifier(make_config(stripes), stripes, tmp_path)
    checkpoint = tmp_path / "checkpoints" / "step-00000012.ckpt"
    content = torch.load(checkpoint, weights_only=True)
    content["fastdl"]["environment"]["threads"] = 77
    torch.save(content, checkpoint)
    train_classifier(make_config(stripes), stripes, tmp_path, description="the run")
    assert "threads was 77, is" in caplog.text


def test_data_that_is_not_the_configured_one_is_refused(stripes: ImageDataset, tmp_path: Path) -> None:
    data = DataConfig("stripes", "another fingerprint")
    with pytest.raises(ValueError, match=r"config\.data names stripes with fingerprint another fingerprint, got"):
        train_classifier(make_config(stripes, data=data), stripes, tmp_path)


INTERRUPTED_SCRIPT = """
import os, signal, sys
from pathlib import Path
from fastdl.data import load_dataset
from fastdl.training import *
from fastdl.training.batches import TrainingBatches
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs are born deaf to it
original = TrainingBatches.training_batch
def batch(self, epoch, number):
    if (epoch, number) == (1, 3):
        os.kill(os.getpid(), getattr(signal, sys.argv[2]))
    return original(self, epoch, number)
TrainingBatches.training_batch = batch
digits = load_dataset("digits")
config = RunConfig(
    DataConfig("digits", digits.fingerprint, train_examples=100), ModelConfig("conv_network", {"depth": 1, "width": 4}),
    OptimizerConfig(), TrainingConfig(epochs=2, batch_size=20, backend="reference"), seed=0,
)
try:
    train_classifier(config, digits, Path(sys.argv[1]))
except KeyboardInterrupt:
    print("KeyboardInterrupt")
"""


@pytest.mark.parametrize(("name", "code", "output"), [("SIGINT", 0, "KeyboardInterrupt\n"), ("SIGTERM", 143, "")])
def test_signals_end_the_run_and_leave_checkpoints(tmp_path: Path, name: str, code: int, output: str) -> None:
    process = subprocess.run(
        [sys.executable, "-c", INTERRUPTED_SCRIPT, str(tmp_path), name],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (process.returncode, process.stdout) == (code, output), process.stderr
    assert (tmp_path / "checkpoints" / "step-00000005.ckpt").is_file()
    assert load_result(tmp_path) is None


def test_the_schedule_warms_up_and_falls_to_zero() -> None:
    factors = [warmup_cosine(step, 10, 110) for step in range(111)]
    assert factors[:10] == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0])
    assert factors[10] == 1.0
    assert factors[60] == pytest.approx(0.5)
    assert factors[110] == pytest.approx(0.0)
    assert all(before >= after for before, after in itertools.pairwise(factors[10:]))
    assert warmup_cosine(0, 0, 1) == 1.0


def test_norms_and_biases_are_not_decayed() -> None:
    model = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3), torch.nn.BatchNorm2d(2), torch.nn.Linear(2, 3))
    optimizer = make_optimizer(model, OptimizerConfig(weight_decay=0.3))
    decays = {id(parameter): group["weight_decay"] for group in optimizer.param_groups for parameter in group["params"]}
    assert {name: decays[id(parameter)] for name, parameter in model.named_parameters()} == {
        "0.weight": 0.3, "0.bias": 0.0, "1.weight": 0.0, "1.bias": 0.0, "2.weight": 0.3, "2.bias": 0.0,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: TrainingConfig(epochs=0, batch_size=8), "epochs must be 1 or more, got 0"),
        (lambda: TrainingConfig(epochs=1, batch_size=1), "batch_size must be 2 or more, .* got 1"),
        (lambda: TrainingConfig(epochs=1, batch_size=8, precision="8"), "precision must be one of 32-true, .* got '8'"),
        (lambda: TrainingConfig(epochs=1, batch_size=8, precision="16-mixed"), "'16-mixed' needs a GPU"),
        (lambda: TrainingConfig(epochs=1, batch_size=8, gradient_clip_norm=0.0), "gradient_clip_norm must be above 0"),
        (
            lambda: TrainingConfig(epochs=1, batch_size=8, early_stopping_patience=0),
            "early_stopping_patience must be 1",
        ),
        (lambda: OptimizerConfig(learning_rate=0.0), r"learning_rate must be above 0, got 0\.0"),
        (lambda: OptimizerConfig(momentum=1.0), "momentum must be at least 0 and below 1"),
        (lambda: OptimizerConfig(warmup_fraction=1.0), "warmup_fraction must be"),
        (lambda: OptimizerConfig(weight_decay=-1.0), "weight_decay must be 0 or more"),
        (lambda: DataConfig("x", "y", validation_fraction=1.0), "validation_fraction must be between 0 and 1"),
        (lambda: DataConfig("x", "y", crop_padding=-1), "crop_padding must be 0 or more"),
    ],
)
def test_impossible_configurations_are_refused_by_name(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_differences_name_the_field() -> None:
    assert differences({"a": {"b": 1, "c": 2}}, {"a": {"b": 1, "c": 3}, "d": 4}) == [
        "a.c: 2 there, 3 here",
        "d: None there, 4 here",
    ]
    assert differences({"a": {"b": 1}}, {"a": {"b": 1}}) == []


def test_policy_by_time_saves_within_an_epoch(stripes: ImageDataset, tmp_path: Path) -> None:
    train_classifier(make_config(stripes), stripes, tmp_path, policy=CheckpointPolicy(every_seconds=0.0, keep=100))
    names = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert names == [f"step-{step:08d}.ckpt" for step in range(1, 13)]


def test_a_configuration_survives_json(stripes: ImageDataset) -> None:
    config = make_config(stripes)
    assert json.loads(json.dumps(config.to_dict())) == config.to_dict()
    assert isinstance(config, RunConfig)
