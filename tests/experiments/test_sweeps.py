"""Sweeps that are killed, cut short, run side by side, or fail in part."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from fastdl.data import load_dataset
from fastdl.experiments import EXPERIMENTS, load_experiment, parallel, runner
from fastdl.experiments.conduct import command_line, conduct
from fastdl.experiments.options import complete
from fastdl.experiments.sigmoid_vs_relu import DEFINITION, Options, run
from fastdl.training import CheckpointPolicy, RunResult, TimeLimitReached
from tests.experiments.killed_sweep import OPTIONS

CHECKOUT = Path(__file__).parents[2]
SMALLEST: dict[str, dict[str, Any]] = {
    "sigmoid_vs_relu": {"depths": (1, 8)},
    "batchnorm_vs_groupnorm": {"batch_sizes": (2, 32), "learning_rate_rules": ("linear", "fixed")},
    "conv_activation_norm_position": {},
}


def small(folder: Path, **changes: Any) -> Options:
    return Options(**{**OPTIONS, "output_dir": folder, "checkpoint_seconds": 30.0, **changes})


def what_was_found(folder: Path) -> Any:
    """All of the results but times and the machine."""
    results = json.loads((folder / "results.json").read_text())
    for found in results["runs"]:
        for name in ("seconds", "speed", "environment"):
            del found[name]
    return {name: results[name] for name in ("complete", "settings", "claims", "arms", "summary", "runs")}


def weights(folder: Path) -> dict[str, dict[str, torch.Tensor]]:
    return {
        path.parent.name: safetensors.torch.load_file(path)
        for path in sorted(folder.glob("runs/*/weights.safetensors"))
    }


def assert_bit_identical(folder: Path, other: Path) -> None:
    assert what_was_found(folder) == what_was_found(other)
    found, expected = weights(folder), weights(other)
    assert found.keys() == expected.keys()
    for name, tensors in expected.items():
        for key, tensor in tensors.items():
            assert torch.equal(found[name][key], tensor), f"{name}: {key}"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small sweep, uninterrupted."""
    return run(small(tmp_path_factory.mktemp("sweep") / "whole"))


def test_killed_at_ten_random_moments_a_sweep_gives_bit_identical_results(whole: Path, tmp_path: Path) -> None:
    seed = random.SystemRandom().randrange(1 << 30)
    command = [sys.executable, "-m", "tests.experiments.killed_sweep", str(tmp_path / "killed"), "10", str(seed)]
    environment = {**os.environ, "PYTHONPATH": str(CHECKOUT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=CHECKOUT)
    told = f"seed {seed}\n{done.stdout}{done.stderr[-2000:]}"
    assert done.returncode == 0, told
    assert int(done.stdout.splitlines()[-1].split()[0]) >= 5, told
    assert_bit_identical(tmp_path / "killed", whole)


def test_runs_side_by_side_give_what_runs_in_turn_give(whole: Path, tmp_path: Path) -> None:
    assert_bit_identical(run(small(tmp_path, jobs=3)), whole)


def test_with_the_sweep_its_processes_end(tmp_path: Path) -> None:
    """Killed, it leaves nobody behind who would go on writing into its folder."""
    words = [sys.executable, "-m", "fastdl", "experiment", "sigmoid_vs_relu", "--output-dir", str(tmp_path / "out")]
    words += ["--depths", "8", "--seeds", "4", "--jobs", "2", "--backend", "reference", "--epochs", "200"]
    environment = {**os.environ, "PYTHONPATH": str(CHECKOUT)}
    process = subprocess.Popen(words, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_for(lambda: len(list((tmp_path / "out").glob("runs/*/logs/csv/*"))) >= 2)
        workers = children(process.pid)
        assert len(workers) >= 2
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    wait_for(lambda: not any(Path(f"/proc/{worker}").exists() for worker in workers))


def children(parent: int) -> list[int]:
    if not Path("/proc/self/stat").exists():
        pytest.skip("processes are looked up in /proc")
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == parent:
            found.append(int(path.parent.name))
    return found


def wait_for(condition: Any, seconds: float = 60.0) -> None:
    limit = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < limit, "it did not come about"
        time.sleep(0.05)


@pytest.mark.parametrize("jobs", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_when_time_is_up_the_same_command_goes_on(whole: Path, tmp_path: Path, jobs: int) -> None:
    with pytest.raises(TimeLimitReached, match=r"time is up after \d of 8 runs"):
        run(small(tmp_path, time_limit=1e-6, jobs=jobs))
    assert what_was_found(tmp_path)["complete"] is False
    assert "of 8 runs" in (tmp_path / "report.md").read_text()
    run(small(tmp_path, jobs=jobs))
    assert_bit_identical(tmp_path, whole)


def test_time_may_be_up_in_the_midst_of_a_run(whole: Path, tmp_path: Path) -> None:
    """Every attempt gets one step further than the one before."""
    options = complete(small(tmp_path), DEFINITION)
    dataset = load_dataset("digits")
    arm = DEFINITION.arms(options)[0]
    plan = runner.PlannedRun(
        {**DEFINITION.factors_of(arm), "seed": 0}, DEFINITION.configure(options, dataset.fingerprint, arm, 0)
    )
    settings = runner.RunSettings(CheckpointPolicy(deadline=0.0), DEFINITION.evidence, ())
    for _ in range(3):
        with pytest.raises(TimeLimitReached):
            runner.run_one(plan, dataset, tmp_path, settings, "cut")
    result = runner.run_one(plan, dataset, tmp_path, runner.RunSettings(evidence=DEFINITION.evidence, trackers=()), "")
    (expected,) = [found for found in what_was_found(whole)["runs"] if found["directory"] == f"runs/{plan.name}"]
    assert (result.history, result.test_accuracy) == (expected["history"], expected["test_accuracy"])
    assert result.evidence == expected["evidence"]


@pytest.mark.parametrize("jobs", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_run_that_fails_is_told_and_tried_again(
    whole: Path, tmp_path: Path, jobs: int, capsys: pytest.CaptureFixture[str]
) -> None:
    # A file where the folder of the run should be: no checkpoint and no result can be written there.
    blocked = tmp_path / "runs" / "relu_depth-2_seed-0"
    blocked.parent.mkdir()
    blocked.write_text("in the way")
    with pytest.raises(RuntimeError, match=r"1 of 8 runs failed .relu_depth-2_seed-0.: FileExistsError"):
        run(small(tmp_path, jobs=jobs))
    results = json.loads((tmp_path / "results.json").read_text())
    assert len(results["runs"]) == 7
    assert [failed["run"] for failed in results["failed"]] == ["relu_depth-2_seed-0"]
    assert "relu, depth 2, seed 0: failed" in capsys.readouterr().err
    blocked.unlink()
    run(small(tmp_path, jobs=jobs))
    assert_bit_identical(tmp_path, whole)


def test_a_process_that_dies_costs_one_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As where the system has no memory left and kills one."""
    take = parallel._Worker.take
    killed = []

    def kill_the_first(self: Any) -> Any:
        if not killed:
            killed.append(self.index)
            self._process.kill()
            self._process.join()
            self.index = None
            return None
        return take(self)

    monkeypatch.setattr(parallel._Worker, "take", kill_the_first)
    with pytest.raises(RuntimeError, match=r"1 of 8 runs failed .*its process ended with status -9"):
        run(small(tmp_path, jobs=2))
    assert len(json.loads((tmp_path / "results.json").read_text())["runs"]) in (7, 8)


def test_a_mistake_in_the_options_ends_a_sweep_side_by_side(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="count must be 10 to 1293 for digits, got 5"):
        run(small(tmp_path, jobs=2, train_examples=5))


def test_claims_are_not_changed_when_results_are_known(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import dataclasses
    import shutil

    folder = Path(shutil.copytree(whole, tmp_path / "again"))
    before = (folder / "results.json").read_bytes()
    fewer = dataclasses.replace(DEFINITION, claims=lambda arms: DEFINITION.claims(arms)[:1])
    with pytest.raises(ValueError, match="made for other claims; claims stand before the runs"):
        conduct(fewer, small(folder))
    assert (folder / "results.json").read_bytes() == before


def test_an_interruption_takes_nothing_out_of_the_results(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import shutil

    folder = Path(shutil.copytree(whole, tmp_path / "again"))
    before = what_was_found(folder)

    def interrupted(*arguments: Any, **options: Any) -> RunResult:
        raise KeyboardInterrupt

    monkeypatch.setattr(runner, "run_one", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(small(folder))
    assert what_was_found(folder) == before


def test_many_epochs_are_what_the_protocol_says_unless_others_are_asked_for() -> None:
    from fastdl.experiments import batchnorm_vs_groupnorm as experiment

    for options, epochs in (({}, 10), ({"epochs": 3}, 3)):
        given = complete(experiment.Options(schedule="many_epochs", **options), experiment.DEFINITION)
        config = experiment.DEFINITION.configure(given, "f", ("group", "linear", 8), 0)
        assert given.epochs == config.training.epochs == epochs


def test_a_second_look_at_the_test_split_is_seen(whole: Path, tmp_path: Path) -> None:
    import shutil

    folder = Path(shutil.copytree(whole, tmp_path / "again"))
    # As if the run had been killed after the evaluation and before its result was written.
    (folder / "runs" / "relu_depth-1_seed-0" / "result.json").unlink()
    run(small(folder))
    touches = json.loads((folder / "results.json").read_text())["test_evaluations"]
    assert touches.pop("relu_depth-1_seed-0") == 2
    assert set(touches.values()) == {1}
    assert "relu_depth-1_seed-0" in (folder / "report.md").read_text()


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_experiment_runs_in_its_smallest_form(name: str, tmp_path: Path) -> None:
    experiment = load_experiment(name)
    options = experiment.options(
        output_dir=tmp_path, seeds=(0, 1), epochs=1, train_examples=200, jobs=1, **SMALLEST[name]
    )
    folder = experiment.run(options)
    results = json.loads((folder / "results.json").read_text())
    assert results["complete"] is True
    assert {found["status"] for found in results["runs"]} == {"finished"}
    assert all(found["evidence"].keys() == set(experiment.definition.evidence) for found in results["runs"])
    for language in ("en", "ko"):
        from fastdl.experiments.reporting import write_report

        text = write_report(experiment.definition, folder, language)[0].read_text()
        for claim in results["claims"]:
            assert claim["text"][language] in text


@pytest.mark.parametrize("name", EXPERIMENTS)
@pytest.mark.parametrize("protocol", ["smoke", "cpu", "full"])
def test_every_protocol_can_be_configured(name: str, protocol: str) -> None:
    """Also those that take an hour: every arm's network is built, and every claim is about arms that are run."""
    from fastdl.experiments.claims import arms_of
    from fastdl.models import build_model

    definition = load_experiment(name).definition
    options = complete(definition.options(protocol=protocol), definition)
    arms = definition.arms(options)
    claims = definition.claims(arms)
    assert claims
    assert len({claim.name for claim in claims}) == len(claims)
    assert {arm for claim in claims for arm in arms_of(claim)} <= set(arms)
    assert len(options.seeds) >= 3
    for arm in arms:
        config = definition.configure(options, "f", arm, 0)
        model = build_model(config.model.name, in_channels=3, num_classes=10, **config.model.arguments)
        assert len(list(model.blocks)) == config.model.arguments.get("depth", 8)  # type: ignore[arg-type]
        assert definition.describe(arm, "ko")
    if protocol == "full":
        assert set(definition.published) <= set(arms)


def test_the_command_is_told_without_the_places_of_this_machine() -> None:
    options = Options(protocol="cpu", data_dir=Path("/somewhere"), seeds=(3,), depths=(1, 8), jobs=2, lang="ko")
    assert command_line(DEFINITION, options) == (
        "fastdl experiment sigmoid_vs_relu --protocol cpu --data-dir DIR --seeds 3, --depths 1,8"
    )


def test_each_arm_may_have_its_own_learning_rate(tmp_path: Path) -> None:
    best = tmp_path / "best.json"
    arms = [{"arm": [activation, 1], "learning_rate": rate} for activation, rate in (("sigmoid", 0.5), ("relu", 0.25))]
    best.write_text(json.dumps({"experiment": "sigmoid_vs_relu", "complete": True, "arms": arms}))
    folder = conduct(DEFINITION, small(tmp_path / "out", depths=(1,), learning_rates=best))
    rates = {
        found["activation"]: found["config"]["optimizer"]["learning_rate"] for found in what_was_found(folder)["runs"]
    }
    assert rates == {"sigmoid": 0.5, "relu": 0.25}
    with pytest.raises(ValueError, match="has none for Sigmoid, blocks 2"):
        conduct(DEFINITION, small(tmp_path / "other", depths=(2,), learning_rates=best))


def test_a_run_result_of_an_earlier_release_can_be_read(whole: Path, tmp_path: Path) -> None:
    from fastdl.training import load_result

    content = json.loads((whole / "runs" / "relu_depth-1_seed-0" / "result.json").read_text())
    del content["evidence"], content["speed"]
    (tmp_path / "result.json").write_text(json.dumps(content))
    found = load_result(tmp_path)
    assert isinstance(found, RunResult)
    assert found.evidence == {}
