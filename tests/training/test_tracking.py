"""Where runs log: files that can be read back, and one run of each tracker for all attempts at a run."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from fastdl.data import ImageDataset
from fastdl.training import load_result, train_classifier
from fastdl.training.batches import TrainingBatches
from fastdl.training.tracking import JSONLLogger, finish, make_loggers
from tests.training.conftest import make_config

CONFIG = {"optimizer": {"learning_rate": 0.1}, "training": {"early_stopping_patience": None}, "seed": 0}


@pytest.fixture(autouse=True)
def no_settings_of_the_user(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("WANDB_MODE", "WANDB_API_KEY", "WANDB_BASE_URL", "WANDB_PROJECT", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "no-netrc"))


def make(directory: Path, *trackers: str, attempt: int = 1, **arguments: Any) -> list[Any]:
    return make_loggers(directory, attempt, trackers, run_name="relu_seed-0", group="relus", config=CONFIG, **arguments)


def log(loggers: list[Any], step: int, **metrics: float) -> None:
    for logger in loggers:
        logger.log_metrics({name.replace("_", "/"): value for name, value in metrics.items()}, step)
        logger.save()


def no_constant(name: str) -> None:
    raise AssertionError(f"{name} is no JSON")


def read_rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line, parse_constant=no_constant) for line in path.read_text().splitlines()]


def interrupt_at(monkeypatch: pytest.MonkeyPatch, epoch: int, number: int) -> None:
    original = TrainingBatches.training_batch

    def interrupted(self: TrainingBatches, *place: int) -> tuple[torch.Tensor, torch.Tensor]:
        if place == (epoch, number):
            raise KeyError("cut")
        return original(self, *place)

    monkeypatch.setattr(TrainingBatches, "training_batch", interrupted)


def test_json_lines_are_strict_and_there_after_a_save(tmp_path: Path) -> None:
    path = tmp_path / "jsonl" / "attempt-3.jsonl"
    logger = JSONLLogger(path)
    assert (logger.name, logger.version, logger.save_dir) == ("jsonl", "attempt-3", str(path.parent))
    logger.save()
    logger.finalize("success")
    assert not path.exists()
    logger.log_metrics({"loss": float("nan"), "norm": float("inf"), "epoch": 2.0, "count": 3}, 7)
    logger.log_metrics({"loss": torch.tensor(0.5)})
    logger.log_hyperparams({"depth": 1})
    logger.save()
    expected = [{"step": 7, "epoch": 2, "loss": None, "norm": None, "count": 3}, {"step": None, "loss": 0.5}]
    assert read_rows(path) == expected
    assert list(read_rows(path)[0])[:2] == ["step", "epoch"]
    logger.finalize("success")
    logger.log_metrics({"loss": -float("inf")}, 8)
    logger.finalize("failed")
    assert read_rows(path) == [*expected, {"step": 8, "loss": None}]


def test_a_run_logs_its_history_as_json_lines(
    stripes: ImageDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        interrupt_at(patch, 1, 2)
        with pytest.raises(KeyError, match="cut"):
            train_classifier(make_config(stripes), stripes, tmp_path, trackers=())
    result = train_classifier(make_config(stripes), stripes, tmp_path, trackers=())
    rows = [row for number in (1, 2) for row in read_rows(tmp_path / "logs" / "jsonl" / f"attempt-{number}.jsonl")]
    for name in ("validation/accuracy", "train/loss"):
        found = {row["epoch"]: row[name] for row in rows if name in row}
        assert found == pytest.approx({row["epoch"]: row[name.replace("/", "_")] for row in result.history})
    assert sorted(path.name for path in (tmp_path / "logs").iterdir()) == ["csv", "jsonl"]
    assert load_result(tmp_path) == result


def test_tensorboard_drops_what_was_logged_after_the_checkpoint(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for attempt, (resumed_step, steps) in enumerate([(0, (1, 2, 3)), (2, (3, 4))], start=1):
        loggers = make(tmp_path, "tensorboard", attempt=attempt, resumed_step=resumed_step)
        for step in steps:
            log(loggers, step, train_loss=10 * attempt + step)
        finish(loggers, "failed")
    events = EventAccumulator(str(tmp_path / "logs" / "tensorboard"))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("train/loss")] == [(1, 11), (3, 23), (4, 24)]


def test_loggers_can_be_finished_twice(tmp_path: Path) -> None:
    loggers = make(tmp_path, "tensorboard")
    log(loggers, 1, train_loss=0.5)
    finish(loggers, "success")
    finish(loggers, "success")
    assert (tmp_path / "logs" / "csv" / "attempt-1" / "metrics.csv").read_text() == "step,train/loss\n1,0.5\n"


def test_wandb_logs_offline_and_continues_its_run(tmp_path: Path) -> None:
    wandb = pytest.importorskip("wandb")
    environment = dict(os.environ)
    directory = tmp_path / "runs" / "relu_seed-0"
    ids = []
    for attempt in (1, 2):
        loggers = make(directory, "wandb", attempt=attempt)
        run = loggers[-1].experiment
        ids.append(run.id)
        assert (run.project, run.group, run.name, run.offline) == ("fastdl", "relus", "relu_seed-0", True)
        assert run.config["optimizer"] == {"learning_rate": 0.1}
        log(loggers, attempt, train_loss=0.5)
        finish(loggers, "success")
        assert wandb.run is None
    assert ids[0] == ids[1]
    wandb.teardown()  # its service writes the files
    for attempt in (1, 2):
        (folder,) = (directory / "logs" / "wandb" / f"attempt-{attempt}" / "wandb").glob("offline-run-*")
        assert folder.name.endswith(ids[0])
        assert b"train/loss" in (folder / f"run-{ids[0]}.wandb").read_bytes()
    assert dict(os.environ) == environment
    other = make(tmp_path / "runs" / "relu_seed-1", "wandb")
    assert other[-1].experiment.id != ids[0]
    finish(other, "failed")
    wandb.teardown()


def test_a_wandb_run_of_the_user_is_left_open(tmp_path: Path) -> None:
    wandb = pytest.importorskip("wandb")
    with wandb.init(mode="offline", dir=tmp_path, settings=wandb.Settings(silent=True, console="off")) as run:
        with pytest.warns(UserWarning, match="already in progress"):
            loggers = make(tmp_path / "run", "wandb")
        finish(loggers, "success")
        assert wandb.run is run
    assert wandb.run is None
    wandb.teardown()


@pytest.mark.parametrize(
    ("variables", "netrc", "mode"),
    [
        ({}, None, "offline"),
        ({"WANDB_API_KEY": "k"}, None, "online"),
        ({"WANDB_API_KEY": "k", "WANDB_MODE": "disabled"}, None, "disabled"),
        ({}, "machine api.wandb.ai login user password k", "online"),
        ({"WANDB_BASE_URL": "https://wandb.example.org"}, "machine api.wandb.ai login user password k", "offline"),
        ({}, "no netrc", "offline"),
    ],
)
def test_wandb_is_online_only_with_a_key_or_on_demand(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], netrc: str | None, mode: str
) -> None:
    from fastdl.training.tracking import _wandb_mode

    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    if netrc is not None:
        (tmp_path / "netrc").write_text(netrc)
        (tmp_path / "netrc").chmod(0o600)
        monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    assert _wandb_mode() == mode


@pytest.fixture(scope="module")
def no_waiting_for_the_disk() -> Iterator[None]:
    """SQLite syncs with every commit, which takes most of the time here, and serves a machine that loses its power."""
    sqlalchemy = pytest.importorskip("sqlalchemy")

    def set_pragma(connection: Any, record: Any) -> None:
        connection.execute("PRAGMA synchronous=OFF")

    sqlalchemy.event.listen(sqlalchemy.Engine, "connect", set_pragma)
    yield
    sqlalchemy.event.remove(sqlalchemy.Engine, "connect", set_pragma)


@pytest.fixture(scope="module")
def empty_database(no_waiting_for_the_disk: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MLflow takes seconds to make the tables of one."""
    pytest.importorskip("mlflow")
    directory = tmp_path_factory.mktemp("mlflow")
    finish(make(directory, "mlflow"), "success")
    return directory / "mlflow.db"


def test_mlflow_continues_its_run_in_the_database_of_the_experiment(
    stripes: ImageDataset, tmp_path: Path, no_waiting_for_the_disk: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    tracking = pytest.importorskip("mlflow.tracking")
    monkeypatch.chdir(tmp_path)
    environment = dict(os.environ)
    directory = tmp_path / "relus" / "runs" / "relu_seed-0"
    config = make_config(stripes)
    with monkeypatch.context() as patch:
        interrupt_at(patch, 1, 2)
        with pytest.raises(KeyError, match="cut"):
            train_classifier(config, stripes, directory, trackers=("mlflow",), group="relus")
    client = tracking.MlflowClient(f"sqlite:///{tmp_path}/relus/mlflow.db")
    run_id = (directory / "logs" / "mlflow-run-id").read_text().strip()
    assert client.get_run(run_id).info.status == "FAILED"
    result = train_classifier(config, stripes, directory, trackers=("mlflow",), group="relus")
    (run,) = client.search_runs([client.get_experiment_by_name("relus").experiment_id])
    assert (run.info.run_id, run.info.run_name, run.info.status) == (run_id, "relu_seed-0", "FINISHED")
    assert run.data.params["training/epochs"] == "3"
    history = {metric.step: metric.value for metric in client.get_metric_history(run_id, "validation/accuracy")}
    assert list(history.values()) == pytest.approx([row["validation_accuracy"] for row in result.history])
    assert run.info.artifact_uri.startswith((tmp_path / "relus" / "mlartifacts").as_uri())
    assert dict(os.environ) == environment
    assert [path.name for path in tmp_path.iterdir()] == ["relus"]  # nothing where the process works


def test_mlflow_starts_a_new_run_when_the_old_one_is_gone(
    tmp_path: Path, empty_database: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tracking = pytest.importorskip("mlflow.tracking")
    shutil.copy(empty_database, tmp_path)
    loggers = make(tmp_path, "mlflow")
    log(loggers, 1, train_loss=float("nan"))
    finish(loggers, "success")
    run_id = loggers[-1].run_id
    client = tracking.MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    (metric,) = client.get_metric_history(run_id, "train/loss")
    assert metric.value != metric.value
    client.delete_run(run_id)
    again = make(tmp_path, "mlflow", attempt=2)
    assert again[-1].run_id != run_id
    assert f"MLflow's run {run_id} is not in" in caplog.text
    (tmp_path / "logs" / "mlflow-run-id").write_text("0" * 32)
    assert make(tmp_path, "mlflow", attempt=3)[-1].run_id not in (run_id, again[-1].run_id)


def test_mlflow_logs_to_the_server_of_the_environment(
    tmp_path: Path, empty_database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tracking = pytest.importorskip("mlflow.tracking")
    shutil.copy(empty_database, tmp_path / "server.db")
    uri = f"sqlite:///{tmp_path}/server.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    loggers = make(tmp_path / "run", "mlflow")
    finish(loggers, "success")
    assert tracking.MlflowClient(uri).get_run(loggers[-1].run_id).info.status == "FINISHED"
    assert os.environ["MLFLOW_TRACKING_URI"] == uri
    assert not (tmp_path / "run" / "mlflow.db").exists()


def test_unknown_trackers_are_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="trackers must be of tensorboard, wandb, mlflow, got neptune, comet"):
        make(tmp_path, "neptune", "mlflow", "comet")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("package", "tracker"), [("wandb", "wandb"), ("mlflow", "mlflow"), ("sqlalchemy", "mlflow")])
def test_a_missing_package_is_named_with_the_extra_that_brings_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str, tracker: str
) -> None:
    for name in ("alembic", "mlflow", "sqlalchemy", "wandb"):  # the others are taken to be there
        monkeypatch.setitem(sys.modules, name, None if name == package else ModuleType(name))
    message = f"tracker '{tracker}' needs the package {package}, which the extra 'tracking' brings: pip install"
    with pytest.raises(ModuleNotFoundError, match=message) as caught:
        make(tmp_path, tracker)
    assert caught.value.name == package
