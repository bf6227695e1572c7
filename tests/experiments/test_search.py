"""The search for learning rates: it finds them, prunes, survives interruption, and does not look at the test split."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from fastdl.data import ImageDataset, load_dataset
from fastdl.experiments import search as search_module
from fastdl.experiments.definition import PROTOCOLS, ExperimentDefinition, Factor, Protocol
from fastdl.experiments.networks import block_network_config
from fastdl.experiments.options import CommonOptions, complete
from fastdl.experiments.search import FIRST_SEARCH_SEED, load_best, search
from fastdl.experiments.search_report import is_at_edge
from fastdl.training import RunConfig, RunResult, TimeLimitReached

optuna = pytest.importorskip("optuna")


@dataclass(frozen=True)
class Options(CommonOptions):
    """Compare activations."""


def configure(options: Options, fingerprint: str, arm: tuple[Any, ...], seed: int) -> RunConfig:
    model = {"depth": 1, "norm": "batch", "activation": arm[0]}
    return block_network_config(options, fingerprint, model, seed)


DEFINITION = ExperimentDefinition(
    name="activations",
    title={"en": "Activations", "ko": "활성화 함수"},
    question={"en": "Which?", "ko": "무엇이?"},
    options=Options,
    factors=(Factor("activation", {"en": "activation", "ko": "활성화 함수"}, {"relu": {"en": "ReLU", "ko": "ReLU"}}),),
    protocols={
        name: Protocol(
            "digits", epochs=6, batch_size=64, learning_rate=0.1, seeds=1, model={"width": 4}, levels={},
            train_examples=200,
        )
        for name in PROTOCOLS
    },
    arms=lambda options: (("relu",), ("sigmoid",)),
    configure=configure,
    varies=("model.arguments.activation",),
    claims=lambda arms: (),
    published={},
    source={"en": "", "ko": ""},
    figures=(),
)  # fmt: skip

BEST = {"relu": 0.1, "sigmoid": 0.5}


class FakeTraining:
    """Accuracies that peak at the best learning rate of each activation, and rise over the epochs.

    ``cut_off`` is called with the number of the trial and of the epoch, and may raise.
    """

    def __init__(self, cut_off: Callable[[int, int], None] = lambda trial, epoch: None) -> None:
        self.configs: list[RunConfig] = []
        self.finished: list[tuple[str, float]] = []
        self._cut_off = cut_off

    def __call__(
        self, config: RunConfig, dataset: ImageDataset, directory: Path, callbacks: Sequence[Any]
    ) -> RunResult:
        self.configs.append(config)
        activation, rate = str(config.model.arguments["activation"]), config.optimizer.learning_rate
        history: list[dict[str, float | int]] = []
        trainer = SimpleNamespace(max_epochs=config.training.epochs, callback_metrics={})
        diverged = rate > 5
        (directory / "checkpoints").mkdir(parents=True)
        for callback in callbacks:
            callback.on_train_start(trainer, SimpleNamespace(history=history))
        for epoch in range(0 if diverged else config.training.epochs):
            self._cut_off(len(self.configs) - 1, epoch)
            peak = math.exp(-(math.log(rate / BEST[activation]) ** 2))
            accuracy = peak * (epoch + 1) / config.training.epochs
            trainer.callback_metrics["validation/accuracy"] = accuracy
            history.append({"epoch": epoch, "validation_accuracy": accuracy})
            for callback in callbacks:
                callback.on_train_epoch_end(trainer, SimpleNamespace(history=history))
        self.finished.append((activation, rate))
        return RunResult(
            status="diverged" if diverged else "finished",
            config=config.to_dict(),
            steps=7,
            parameters=1,
            history=history,
            validation_accuracy=None if diverged else float(history[-1]["validation_accuracy"]),
            test_accuracy=None,
            test_loss=None,
            seconds=0.0,
            environment={},
        )

    @property
    def rates(self) -> list[tuple[str, float]]:
        """Of the trials that were begun."""
        return [(str(config.model.arguments["activation"]), config.optimizer.learning_rate) for config in self.configs]


@pytest.fixture(scope="module", autouse=True)
def no_waiting_for_the_disk() -> Iterator[None]:
    """SQLite syncs with every commit, which takes most of the time here, and serves a machine that loses its power."""
    sqlalchemy = pytest.importorskip("sqlalchemy")

    def set_pragma(connection: Any, record: Any) -> None:
        connection.execute("PRAGMA synchronous=OFF")

    sqlalchemy.event.listen(sqlalchemy.Engine, "connect", set_pragma)
    yield
    sqlalchemy.event.remove(sqlalchemy.Engine, "connect", set_pragma)


@pytest.fixture(scope="module")
def digits() -> ImageDataset:
    return load_dataset("digits")


def run(digits: ImageDataset, folder: Path, train: Any, **changes: Any) -> dict[str, Any]:
    arguments: dict[str, Any] = {"trials": 8, "low": 0.001, "high": 1.0, "seed": 0, **changes}
    return search(DEFINITION, complete(Options(), DEFINITION), digits, folder, train=train, **arguments)


def trials_of(folder: Path, arm: str) -> list[Any]:
    study = optuna.load_study(study_name=json.dumps([arm]), storage=f"sqlite:///{folder}/search.db")
    found: list[Any] = study.get_trials()
    study._storage._backend.engine.dispose()
    return found


def test_the_best_of_each_arm_is_found_and_read_back(
    digits: ImageDataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train = FakeTraining()
    content = run(digits, tmp_path, train, trials=20)
    assert content == json.loads((tmp_path / "best.json").read_text())
    for row, (activation, best) in zip(content["arms"], BEST.items(), strict=True):
        assert row["arm"] == [activation]
        assert math.log(row["learning_rate"]) == pytest.approx(math.log(best), abs=0.5)
        assert row["validation_accuracy"] > 0.75
        assert row["trials"] == 20
        assert row["diverged"] == 0
        assert row["pruned"] == sum(trial.state.name == "PRUNED" for trial in trials_of(tmp_path, activation))
    assert sum(row["pruned"] for row in content["arms"]) > 0
    assert len(train.finished) + sum(row["pruned"] for row in content["arms"]) == 40
    assert {config.seed for config in train.configs} == {FIRST_SEARCH_SEED}
    assert not list(tmp_path.glob("trials/*/*/checkpoints"))
    expected = {(row["arm"][0],): row["learning_rate"] for row in content["arms"]}
    assert load_best(tmp_path / "best.json", DEFINITION) == expected
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 40
    assert lines[0].startswith("[1/40] ReLU: learning rate 0.")
    assert any("pruned after" in line for line in lines)
    assert {key: content[key] for key in ("experiment", "protocol", "complete", "trials", "range", "seed")} == {
        "experiment": "activations", "protocol": "smoke", "complete": True, "trials": 20, "range": [0.001, 1.0],
        "seed": 0,
    }  # fmt: skip
    table = (tmp_path / "search.md").read_text()
    assert f"| ReLU | {content['arms'][0]['learning_rate']:.4g} |" in table
    assert "not finished" not in table


def test_the_first_trials_of_all_arms_have_the_same_learning_rates(digits: ImageDataset, tmp_path: Path) -> None:
    train = FakeTraining()
    run(digits, tmp_path / "first", train, trials=5)
    rates = [rate for _, rate in train.rates]
    assert rates[::2] == rates[1::2]
    assert len(set(rates)) == 5
    other = FakeTraining()
    run(digits, tmp_path / "second", other, trials=5, seed=1)
    assert not set(rates) & {rate for _, rate in other.rates}
    assert {config.seed for config in other.configs} == {FIRST_SEARCH_SEED + 1}


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_a_search_that_was_cut_off_repeats_nothing_and_ends_the_same(
    digits: ImageDataset, tmp_path: Path, error: type[BaseException]
) -> None:
    expected = run(digits, tmp_path / "whole", whole := FakeTraining())

    def cut_off(trial: int, epoch: int) -> None:
        if trial == 7 and epoch == 2:
            raise error

    first = FakeTraining(cut_off)
    with pytest.raises(error):
        run(digits, tmp_path / "cut", first)
    begun = json.loads((tmp_path / "cut" / "best.json").read_text())
    assert (begun["complete"], [row["trials"] for row in begun["arms"]]) == (False, [4, 3])
    (tmp_path / "cut" / "trials" / "sigmoid" / "trial-3" / "checkpoints").rmdir()  # the fake makes it anew
    second = FakeTraining()
    assert run(digits, tmp_path / "cut", second) == expected
    assert first.rates[:7] + second.rates == whole.rates
    assert first.rates[7] == second.rates[0]
    states = [trial.state.name for trial in trials_of(tmp_path / "cut", "sigmoid")]
    assert (states.count("FAIL"), states.count("RUNNING"), len(states)) == (1, 0, 9)
    third = FakeTraining()
    assert run(digits, tmp_path / "cut", third) == expected
    assert not third.configs
    assert [row["trials"] for row in run(digits, tmp_path / "cut", third, trials=9)["arms"]] == [9, 9]
    assert len(third.configs) == 2


KILLED_SCRIPT = """
import os, signal, sys
from pathlib import Path
from fastdl.data import load_dataset
from tests.experiments.test_search import FakeTraining, run
def kill(trial, epoch):
    if (trial, epoch) == (3, 4):
        os.kill(os.getpid(), signal.SIGKILL)
run(load_dataset("digits"), Path(sys.argv[1]), FakeTraining(kill), trials=3)
"""


def test_a_search_that_was_killed_goes_on(digits: ImageDataset, tmp_path: Path) -> None:
    root = Path(__file__).parents[2]
    command = [sys.executable, "-c", KILLED_SCRIPT, str(tmp_path)]
    assert subprocess.run(command, cwd=root, capture_output=True, timeout=120, check=False).returncode == -9
    cut_off = trials_of(tmp_path, "sigmoid")[-1]
    assert cut_off.state.name == "RUNNING"
    (tmp_path / "trials" / "sigmoid" / "trial-1" / "checkpoints").rmdir()
    train = FakeTraining()
    content = run(digits, tmp_path, train, trials=3)
    assert [row["trials"] for row in content["arms"]] == [3, 3]
    assert train.rates[0] == ("sigmoid", cut_off.params["learning_rate"])
    assert len(train.rates) == 3


def test_diverged_trials_count_as_an_accuracy_of_zero(digits: ImageDataset, tmp_path: Path) -> None:
    content = run(digits, tmp_path, FakeTraining(), low=0.05, high=500.0, trials=10)
    for row in content["arms"]:
        diverged = [trial for trial in trials_of(tmp_path, row["arm"][0]) if trial.user_attrs.get("diverged")]
        assert row["diverged"] == len(diverged) > 0
        assert {trial.value for trial in diverged} == {0.0}
        assert row["learning_rate"] <= 5
    with_none = run(digits, tmp_path / "none", FakeTraining(), low=10.0, high=500.0, trials=2)
    assert [row["learning_rate"] for row in with_none["arms"]] == [None, None]
    assert "| ReLU | - | - | 2 | 0 | 2 |" in (tmp_path / "none" / "search.md").read_text()
    with pytest.raises(ValueError, match="no learning rate for ReLU: all its trials diverged"):
        load_best(tmp_path / "none" / "best.json", DEFINITION)


@pytest.mark.parametrize(
    ("rate", "expected"), [(0.001, True), (0.0019, True), (0.0021, False), (0.4, False), (0.6, True)]
)
def test_a_best_one_at_the_edge_of_the_range_is_pointed_out(rate: float, expected: bool) -> None:
    assert is_at_edge(rate, 0.001, 1.0) is expected


def test_the_table_says_that_the_best_one_is_at_the_edge(digits: ImageDataset, tmp_path: Path) -> None:
    content = run(digits, tmp_path, FakeTraining(), low=0.4, high=20.0, trials=12)
    assert content["arms"][1]["at_edge"]
    assert "at the edge of the range" in (tmp_path / "search.md").read_text()


def test_the_deadline_stops_between_trials(digits: ImageDataset, tmp_path: Path) -> None:
    end = time.monotonic() + 1000

    def pass_time(trial: int, epoch: int) -> None:
        if trial == 2:
            patch.setattr(search_module.time, "monotonic", lambda: end)

    train = FakeTraining(pass_time)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(TimeLimitReached, match="after 3 of 16 trials"):
        run(digits, tmp_path, train, deadline=end)
    assert len(train.finished) == 3
    with pytest.raises(ValueError, match="of a search that is not finished"):
        load_best(tmp_path / "best.json", DEFINITION)
    assert "The search is not finished." in (tmp_path / "search.md").read_text()
    assert run(digits, tmp_path, train, deadline=None)["complete"]


def test_another_search_in_the_folder_is_refused(digits: ImageDataset, tmp_path: Path) -> None:
    run(digits, tmp_path, FakeTraining(), trials=1)
    with pytest.raises(ValueError, match=r"other settings \(high: 1.0 there, 2.0 here\); choose another folder"):
        run(digits, tmp_path, FakeTraining(), trials=1, high=2.0)
    with pytest.raises(ValueError, match=r"other settings \(seed: 1000 there, 1001 here\)"):
        run(digits, tmp_path, FakeTraining(), trials=1, seed=1)

    def search_again(trial: int, epoch: int) -> None:
        run(digits, tmp_path, FakeTraining())

    with pytest.raises(ValueError, match="another process is at work in"):
        run(digits, tmp_path, FakeTraining(search_again), trials=2)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"trials": 0}, "trials must be 1 or more, got 0"),
        ({"low": 0.0}, r"low and high must be above 0 and in this order, got 0\.0 and 1\.0"),
        ({"low": 2.0}, r"got 2\.0 and 1\.0"),
        ({"high": math.inf}, "got 0.001 and inf"),
        ({"seed": -1}, "seed must be 0 or more, got -1"),
    ],
)
def test_impossible_searches_are_refused(
    digits: ImageDataset, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        run(digits, tmp_path / "new", FakeTraining(), **changes)
    assert not (tmp_path / "new").exists()


def test_a_file_that_is_no_finished_search_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "best.json"
    with pytest.raises(ValueError, match=r"best.json cannot be read .*; fastdl search activations writes it"):
        load_best(path, DEFINITION)
    good = {"experiment": "activations", "complete": True, "arms": [{"arm": ["relu"], "learning_rate": 0.1}]}
    wrong = [
        ({"experiment": "depths"}, "is of the experiment depths, not of activations"),
        ({"arms": []}, "holds no arm"),
        ({"arms": [{"arm": ["relu", 8], "learning_rate": 0.1}]}, "an arm of activations has the factors activation"),
        ({"arms": [{"arm": ["relu"]}]}, "is not the result of a search: KeyError: 'learning_rate'"),
        ({"arms": [{"arm": ["relu"], "learning_rate": "fast"}]}, "holds the learning rate 'fast' for ReLU"),
        ({"arms": [{"arm": ["relu"], "learning_rate": -1}]}, "holds the learning rate -1 for ReLU"),
    ]
    for change, message in wrong:
        path.write_text(json.dumps({**good, **change}))
        with pytest.raises(ValueError, match=message):
            load_best(path, DEFINITION)
    path.write_text('{"experiment"')
    with pytest.raises(ValueError, match="is not the result of a search"):
        load_best(path, DEFINITION)
    path.write_text(json.dumps(good))
    assert load_best(path, DEFINITION) == {("relu",): 0.1}


def test_a_missing_optuna_is_named_with_the_extra_that_brings_it(
    digits: ImageDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(ModuleNotFoundError, match=r"needs the package optuna: pip install 'fastdl\[experiments\]'"):
        run(digits, tmp_path, FakeTraining())


def test_digits_are_trained_for_real_without_a_look_at_the_test_split(
    digits: ImageDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = replace(complete(Options(), DEFINITION), epochs=3)
    arguments: dict[str, Any] = {"trials": 6, "low": 1e-6, "high": 1.0, "seed": 0}

    def cut(trial: Any, value: float, step: int) -> None:
        original(trial, value, step)
        if trial.number == 2 and step == 1:
            raise KeyError("cut")

    original = optuna.Trial.report
    with monkeypatch.context() as patch:
        patch.setattr(optuna.Trial, "report", cut)
        with pytest.raises(KeyError, match="cut"):
            search(DEFINITION, options, digits, tmp_path, **arguments)
    cut_off = tmp_path / "trials" / "relu" / "trial-2"
    assert [path.name for path in (cut_off / "checkpoints").iterdir()] == ["step-00000003.ckpt"]
    content = search(DEFINITION, options, digits, tmp_path, **arguments)
    assert [row["trials"] for row in content["arms"]] == [6, 6]
    assert sum(row["pruned"] for row in content["arms"]) > 0
    for row in content["arms"]:
        trials = trials_of(tmp_path, row["arm"][0])
        complete_ones = [trial for trial in trials if trial.state.name == "COMPLETE"]
        assert all(len(trial.intermediate_values) == 3 for trial in complete_ones)
        assert all(trial.value == trial.intermediate_values[2] for trial in complete_ones)
        assert row["validation_accuracy"] == max(trial.value for trial in complete_ones)
    assert not list(tmp_path.rglob("test-evaluations.jsonl"))
    assert not list(tmp_path.rglob("weights.safetensors"))
    assert not list(tmp_path.rglob("*.ckpt"))
