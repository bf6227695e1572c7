"""The experiment from its options to its report: pairing, resuming, refusing, recording."""

from __future__ import annotations

import dataclasses
import json
import os
import random
import signal
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from filelock import FileLock
from PIL import Image

from fastdl.experiments import EXPERIMENTS, load_experiment, runner
from fastdl.experiments.claims import claim_from_dict
from fastdl.experiments.conduct import summarize
from fastdl.experiments.options import complete
from fastdl.experiments.sigmoid_vs_relu import DEFINITION, Options, run
from fastdl.training import RunConfig, RunResult
from fastdl.training import run as training_run
from fastdl.training.batches import TrainingBatches
from fastdl.training.config import differences

CHECKOUT = Path(__file__).parents[2]
TINY: dict[str, Any] = {
    "depths": (1, 2),
    "seeds": (0, 1),
    "epochs": 2,
    "batch_size": 50,
    "width": 4,
    "train_examples": 200,
    "jobs": 1,
}


def tiny(folder: Path, **changes: Any) -> Options:
    return Options(**{**TINY, "backend": "reference", "output_dir": folder, **changes})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"depths": (0,)}, "depths must be between 1 and 8, got 0"),
        ({"depths": (1, 9)}, "depths must be between 1 and 8, got 1,9"),
        ({"depths": ()}, "depths must be between 1 and 8"),
        ({"seeds": ()}, "seeds must hold at least one seed"),
        ({"checkpoint_seconds": -1.0}, "checkpoint_seconds must be 0 or more"),
        ({"time_limit": 0.0}, "time_limit must be above 0 minutes, got 0.0"),
        ({"jobs": 0}, "jobs must be 1 or more, got 0"),
        ({"protocol": "cpu", "dataset": "digits"}, "protocol 'cpu' is made for cifar10, got dataset 'digits'"),
        ({"protocol": "smoke", "dataset": "cifar10"}, "protocol 'smoke' is made for digits, got dataset 'cifar10'"),
        ({"epochs": 0}, "epochs must be 1 or more, got 0"),
        ({"train_examples": 5}, "count must be 10 to 1293 for digits, got 5"),
    ],
)
def test_impossible_options_are_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        run(tiny(tmp_path, **change))


def read_results(folder: Path) -> Any:
    return json.loads((folder / "results.json").read_text())


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run(tiny(tmp_path_factory.mktemp("experiment") / "digits"))


def test_the_results_hold_every_run_with_its_curves(finished: Path) -> None:
    results = read_results(finished)
    assert results["complete"] is True
    assert results["settings"]["training"]["epochs"] == 2
    assert results["environment"]["versions"]["torch"] == torch.__version__
    factors = [(found["activation"], found["depth"], found["seed"]) for found in results["runs"]]
    assert factors == [(a, d, s) for s in (0, 1) for d in (1, 2) for a in ("sigmoid", "relu")]
    for found in results["runs"]:
        assert found["status"] == "finished"
        assert [row["epoch"] for row in found["history"]] == [0, 1]
        assert 0 <= found["test_accuracy"] <= 1
        assert (finished / found["directory"] / "weights.safetensors").is_file()
        assert found["seconds"] > 0
        assert found["speed"]["images_per_second"] > 0
        assert (found["speed"]["fused_share"] is None) == (found["seed"] != 0)
        assert results["test_evaluations"][Path(found["directory"]).name] == 1
    rows = {tuple(row["arm"]): row for row in results["summary"]}
    accuracies = [
        found["test_accuracy"] for found in results["runs"] if (found["activation"], found["depth"]) == ("relu", 2)
    ]
    assert rows["relu", 2]["accuracy"]["mean"] == pytest.approx(sum(accuracies) / 2)
    assert list(rows) == [("sigmoid", 1), ("relu", 1), ("sigmoid", 2), ("relu", 2)]


def test_claims_stand_in_the_results_before_the_first_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*arguments: Any, **options: Any) -> RunResult:
        raise KeyboardInterrupt

    monkeypatch.setattr(runner, "train_classifier", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(tiny(tmp_path, depths=(1, 2, 8)))
    results = read_results(tmp_path)
    assert results["runs"] == []
    claims = DEFINITION.claims([tuple(arm) for arm in results["arms"]])
    assert [claim_from_dict(content) for content in results["claims"]] == list(claims)
    assert [claim.name for claim in claims] == ["sigmoid_falls", "relu_rises", "relu_ahead_at_1", "relu_ahead_at_8"]


def run_config(options: Options, fingerprint: str, activation: str, depth: int, seed: int) -> RunConfig:
    return DEFINITION.configure(complete(options, DEFINITION), fingerprint, (activation, depth), seed)


def test_the_arms_of_a_pair_differ_in_the_activation_alone() -> None:
    relu, sigmoid = (run_config(Options(), "f", activation, 4, 2).to_dict() for activation in ("relu", "sigmoid"))
    assert differences(sigmoid, relu) == ["model.arguments.activation: 'sigmoid' there, 'relu' here"]


def test_the_arms_of_a_pair_begin_with_equal_weights_and_see_equal_batches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    starts: list[dict[str, torch.Tensor]] = []
    batches: list[list[torch.Tensor]] = []
    initialize, training_batch = training_run.initialize_weights, TrainingBatches.training_batch

    def record_start(model: torch.nn.Module, seed: int) -> None:
        initialize(model, seed)
        starts.append({name: value.clone() for name, value in model.state_dict().items()})
        batches.append([])

    def record_batch(self: TrainingBatches, epoch: int, number: int) -> tuple[torch.Tensor, torch.Tensor]:
        images, labels = training_batch(self, epoch, number)
        batches[-1] += [images, labels]
        return images, labels

    monkeypatch.setattr(training_run, "initialize_weights", record_start)
    monkeypatch.setattr(TrainingBatches, "training_batch", record_batch)
    run(tiny(tmp_path, depths=(1, 3), seeds=(4,)))
    assert len(starts) == 4
    # Eight steps, and the batch on which the share of fused ops is measured; images and labels of each.
    assert [len(part) for part in batches] == [18] * 4
    for other in starts[1:]:
        assert all(torch.equal(other[name], value) for name, value in starts[0].items())
    for others in batches[1:]:
        assert all(torch.equal(found, expected) for found, expected in zip(others, batches[0], strict=True))


def test_the_report_shows_the_results(finished: Path) -> None:
    text = (finished / "report.md").read_text()
    for row in read_results(finished)["summary"]:
        assert f"{100 * row['accuracy']['mean']:.2f}" in text
    for claim in DEFINITION.claims([("sigmoid", 1), ("sigmoid", 2)]):
        assert claim.text["en"] in text
    assert "accuracy_by_depth.png" in text
    assert (finished / "report.html").is_file()


def test_the_plots_are_pictures(finished: Path) -> None:
    with Image.open(finished / "accuracy_by_depth.png") as image:
        colors = image.convert("RGB").getcolors(1 << 20)
    assert colors is not None
    shown = {color for _, color in colors}
    assert {(0xD5, 0x5E, 0x00), (0x00, 0x72, 0xB2)} <= shown  # both lines
    root = ElementTree.parse(finished / "accuracy_by_depth.svg").getroot()
    assert root.tag.endswith("svg")


def test_the_same_again_runs_nothing_again(
    finished: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = (finished / "results.json").read_bytes(), (finished / "report.md").read_bytes()
    monkeypatch.setattr(training_run, "_fit", lambda *arguments: pytest.fail("trained again"))
    run(tiny(finished))
    assert capsys.readouterr().out.count("(finished before)") == 8
    assert ((finished / "results.json").read_bytes(), (finished / "report.md").read_bytes()) == before


def test_more_seeds_and_depths_are_added_to_what_is_there(finished: Path, tmp_path: Path) -> None:
    import shutil

    folder = shutil.copytree(finished, tmp_path / "more")
    run(tiny(folder, seeds=(0, 1, 2), depths=(2,)))
    summary = read_results(folder)["summary"]
    assert [(row["arm"], row["accuracy"]["count"]) for row in summary] == [(["sigmoid", 2], 3), (["relu", 2], 3)]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"epochs": 3}, r"training\.epochs: 2 there, 3 here"),
        ({"learning_rate": 0.2}, r"optimizer\.learning_rate: 1\.0 there, 0\.2 here"),
        ({"train_examples": 201}, r"data\.train_examples: 200 there, 201 here"),
    ],
)
def test_other_settings_in_the_same_folder_are_refused(finished: Path, change: dict[str, Any], message: str) -> None:
    before = (finished / "results.json").read_bytes()
    with pytest.raises(ValueError, match=message) as caught:
        run(tiny(finished, **change))
    assert "Choose another --output-dir" in str(caught.value)
    assert (finished / "results.json").read_bytes() == before


def test_no_resume_keeps_the_old_results_beside_the_new(finished: Path, tmp_path: Path) -> None:
    import shutil

    folder = shutil.copytree(finished, tmp_path / "digits")
    run(tiny(folder, epochs=1, depths=(1,), seeds=(0,), resume=False))
    assert len(read_results(folder)["runs"]) == 2
    (aside,) = tmp_path.glob("digits.before-*")
    assert len(read_results(aside)["runs"]) == 8


def test_two_processes_do_not_work_in_one_folder(finished: Path) -> None:
    with FileLock(finished / ".lock"), pytest.raises(ValueError, match="another process is at work in"):
        run(tiny(finished))


def test_one_seed_gets_no_interval_and_decides_nothing(tmp_path: Path) -> None:
    folder = run(tiny(tmp_path, depths=(1,), seeds=(3,)))
    for row in read_results(folder)["summary"]:
        assert row["accuracy"]["count"] == 1
        assert row["accuracy"]["deviation"] is row["accuracy"]["half_width"] is None
    text = (folder / "report.md").read_text()
    assert "undecided" in text
    assert "**supported" not in text


def test_a_diverged_run_is_counted_and_shown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    original = TrainingBatches.training_batch

    def poisoned(self: TrainingBatches, epoch: int, number: int) -> tuple[torch.Tensor, torch.Tensor]:
        images, labels = original(self, epoch, number)
        return images * (float("inf") if self._seed == 1 else 1.0), labels

    monkeypatch.setattr(TrainingBatches, "training_batch", poisoned)
    folder = run(tiny(tmp_path, depths=(1,)))
    for row in read_results(folder)["summary"]:
        assert (row["diverged"], row["accuracy"]["count"]) == (1, 1)
    assert [found["status"] for found in read_results(folder)["runs"]] == [
        "finished",
        "finished",
        "diverged",
        "diverged",
    ]
    assert "diverged" in (folder / "report.md").read_text()
    assert "seed 1: diverged after 0 steps" in capsys.readouterr().out


def test_when_every_run_diverges_there_is_still_a_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = TrainingBatches.training_batch

    def poisoned(self: TrainingBatches, epoch: int, number: int) -> tuple[torch.Tensor, torch.Tensor]:
        images, labels = original(self, epoch, number)
        return images * float("nan"), labels

    monkeypatch.setattr(TrainingBatches, "training_batch", poisoned)
    folder = run(tiny(tmp_path, depths=(1,)))
    assert "diverged" in (folder / "report.md").read_text()
    assert (folder / "accuracy_by_depth.png").is_file()


def test_results_are_written_after_every_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = runner.train_classifier
    calls = 0

    def interrupted(*arguments: Any, **options: Any) -> RunResult:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise KeyboardInterrupt
        return original(*arguments, **options)

    monkeypatch.setattr(runner, "train_classifier", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(tiny(tmp_path))
    results = read_results(tmp_path)
    assert results["complete"] is False
    assert len(results["runs"]) == 2
    monkeypatch.undo()
    run(tiny(tmp_path))
    assert read_results(tmp_path)["complete"] is True


def test_a_diverged_run_enters_no_mean() -> None:
    def outcome(activation: str, seed: int, accuracy: float | None) -> runner.Outcome:
        config = run_config(Options(), "f", activation, 1, seed)
        fields: dict[str, Any] = dict.fromkeys(field.name for field in dataclasses.fields(RunResult))
        status = "diverged" if accuracy is None else "finished"
        result = RunResult(**{**fields, "test_accuracy": accuracy, "status": status})
        return runner.Outcome(runner.PlannedRun({"activation": activation, "depth": 1, "seed": seed}, config), result)

    sweep = runner.Sweep([outcome("relu", 0, 0.9), outcome("relu", 1, None), outcome("sigmoid", 0, 0.5)])
    relu, sigmoid = summarize(DEFINITION, [("relu", 1), ("sigmoid", 1)], sweep)
    assert (relu["accuracy"]["mean"], relu["accuracy"]["count"], relu["diverged"]) == (0.9, 1, 1)
    assert (sigmoid["accuracy"]["count"], sigmoid["diverged"]) == (1, 0)


def test_experiments_are_found_by_name() -> None:
    for name in EXPERIMENTS:
        experiment = load_experiment(name)
        assert dataclasses.is_dataclass(experiment.options)
        assert callable(experiment.run)
    with pytest.raises(ValueError, match="there is no experiment 'nope'; there is sigmoid_vs_relu"):
        load_experiment("nope")


def command(folder: Path, options: str) -> tuple[list[str], dict[str, str]]:
    words = [
        sys.executable,
        "-m",
        "fastdl",
        "experiment",
        "sigmoid_vs_relu",
        "--output-dir",
        str(folder),
        *options.split(),
    ]
    # The same number of threads as here: it decides the order of additions, and so the last bit.
    threads = str(torch.get_num_threads())
    environment = {**os.environ, "OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads, "PYTHONPATH": str(CHECKOUT)}
    return words, environment


def kill_at(folder: Path, words: list[str], environment: dict[str, str], checkpoints: int) -> None:
    """Start the command and kill it when so many checkpoints have been written."""
    process = subprocess.Popen(words, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    seen: set[Path] = set()
    while len(seen) < checkpoints:
        assert process.poll() is None, process.stderr.read().decode() if process.stderr else ""
        seen |= set(folder.glob("runs/*/checkpoints/step-*.ckpt"))
        time.sleep(0.001)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()


def assert_equal_weights(folder: Path, other: Path) -> None:
    names = sorted(path.relative_to(other) for path in other.glob("runs/*/weights.safetensors"))
    assert names
    for name in names:
        found, expected = (safetensors.torch.load_file(root / name) for root in (folder, other))
        assert found.keys() == expected.keys()
        for key in expected:
            assert torch.equal(found[key], expected[key]), f"{name}: {key}"


def test_killed_and_run_again_the_command_gives_the_same_weights(tmp_path: Path) -> None:
    """Two runs of 60 steps with a checkpoint after every step, killed after any of the first 100."""
    options = (
        "--depths 2 --seeds 1 --epochs 3 --batch-size 64 --width 8 --backend reference --checkpoint-seconds 0 --jobs 1"
    )
    words, environment = command(tmp_path / "killed", options)
    kill_at(tmp_path / "killed", words, environment, random.SystemRandom().randint(5, 100))
    assert not (tmp_path / "killed" / "report.md").exists()
    again: dict[str, Any] = {"depths": (2,), "seeds": (0,), "epochs": 3, "batch_size": 64, "width": 8, "jobs": 1}
    for name in ("killed", "whole"):
        run(Options(output_dir=tmp_path / name, backend="reference", **again))
    assert_equal_weights(tmp_path / "killed", tmp_path / "whole")
    killed, whole = read_results(tmp_path / "killed"), read_results(tmp_path / "whole")
    for found, expected in zip(killed["runs"], whole["runs"], strict=True):
        assert (found["history"], found["test_accuracy"]) == (expected["history"], expected["test_accuracy"])


@pytest.mark.slow
def test_killed_and_run_again_on_cifar10(tmp_path: Path) -> None:
    places = [os.environ.get("FASTDL_DATA"), CHECKOUT.parent / "shared" / "data"]
    data = next((Path(place) for place in places if place and (Path(place) / "cifar10").is_dir()), None)
    if data is None:
        pytest.skip("CIFAR-10 is neither under $FASTDL_DATA nor under ../shared/data")
    options = "--dataset cifar10 --depths 4 --seeds 1 --epochs 2 --train-examples 2000 --checkpoint-seconds 0.5"
    words, environment = command(tmp_path / "killed", f"{options} --data-dir {data}")
    kill_at(tmp_path / "killed", words, environment, 3)
    for name in ("killed", "whole"):
        words, environment = command(tmp_path / name, f"{options} --data-dir {data}")
        subprocess.run(words, env=environment, check=True, capture_output=True)
    assert_equal_weights(tmp_path / "killed", tmp_path / "whole")
