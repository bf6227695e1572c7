"""Where a run logs: CSV and JSON lines always, TensorBoard, Weights & Biases and MLflow where they are asked for."""

from __future__ import annotations

import json
import logging
import math
import netrc
import os
import secrets
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO
from urllib.parse import urlsplit

from filelock import FileLock
from lightning.pytorch.loggers import CSVLogger, MLFlowLogger, TensorBoardLogger, WandbLogger
from lightning.pytorch.loggers.logger import Logger

from fastdl.data.files import atomic_write

__all__ = ["TRACKERS", "JSONLLogger", "finish", "make_loggers"]

TRACKERS = ("tensorboard", "wandb", "mlflow")
"""Names of what a run can log to besides its CSV and JSONL files."""

_LOGGER = logging.getLogger(__name__)
_PROJECT = "fastdl"


def make_loggers(
    directory: Path,
    attempt: int,
    trackers: Sequence[str],
    *,
    run_name: str,
    group: str,
    resumed_step: int = 0,
    config: Mapping[str, Any],
) -> list[Logger]:
    """Return the loggers of one attempt at a run; Lightning's, so that a trainer takes them.

    CSV and JSONL are always among them, with a file for each attempt. A run that is continued goes on in the same run
    of Weights & Biases and of MLflow, whose ids are kept in its folder.

    Weights & Biases logs to the project ``$WANDB_PROJECT``, "fastdl" without it, and offline into the folder of the run
    unless ``$WANDB_MODE`` says otherwise or an API key is there. MLflow logs to ``$MLFLOW_TRACKING_URI``, without it to
    ``mlflow.db`` in the folder of the experiment.

    Args:
        directory: of the run; that of its experiment holds it as ``runs/NAME``.
        attempt: number of the attempt, from 1.
        trackers: of `TRACKERS`, in any order.
        run_name: for people.
        group: what the runs of an experiment have in common: its name.
        resumed_step: of the checkpoint that the attempt continues from.
        config: of the run, nested mappings of plain values.

    Raises:
        ValueError: there is no such tracker.
        ModuleNotFoundError: a package that a tracker needs is missing; the message says how to install it.
    """
    if unknown := [name for name in trackers if name not in TRACKERS]:
        raise ValueError(f"trackers must be of {', '.join(TRACKERS)}, got {', '.join(unknown)}")
    logs = directory / "logs"
    make: dict[str, Callable[[], Logger]] = {
        # TensorBoard drops what an earlier attempt logged after the checkpoint that this one continues from.
        "tensorboard": lambda: TensorBoardLogger(logs, name="tensorboard", version="", purge_step=resumed_step),
        "wandb": lambda: _wandb_logger(logs, attempt, run_name, group, config),
        "mlflow": lambda: _mlflow_logger(logs, _experiment_folder(directory), run_name, group, config),
    }
    loggers: list[Logger] = [
        CSVLogger(logs, name="csv", version=f"attempt-{attempt}"),
        JSONLLogger(logs / "jsonl" / f"attempt-{attempt}.jsonl"),
    ]
    return loggers + [make[name]() for name in TRACKERS if name in trackers]


def finish(loggers: Sequence[Logger], status: str) -> None:
    """Close the loggers of an attempt; harmless where Lightning has done so.

    Args:
        loggers: of `make_loggers`.
        status: "success" or "failed".
    """
    for logger in loggers:
        logger.finalize(status)


class JSONLLogger(Logger):
    """Appends an object of JSON for every call: ``{"step": 4, "epoch": 0, "train/loss": 0.7}``.

    A number that JSON does not know (NaN, an infinity) becomes null, so that any reader of JSON takes the file.

    Args:
        path: of the file; its folder is made when the first line is written.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._path = path
        self._file: TextIO | None = None

    @property
    def name(self) -> str:
        return self._path.parent.name

    @property
    def version(self) -> str:
        return self._path.stem

    @property
    def save_dir(self) -> str:
        return str(self._path.parent)

    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        row: dict[str, Any] = {"step": step}
        if "epoch" in metrics:
            row["epoch"] = int(metrics["epoch"])
        row |= {name: _finite(value) for name, value in metrics.items() if name not in row}
        if self._file is None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self._path.open("a", encoding="utf-8")
        self._file.write(json.dumps(row, allow_nan=False) + "\n")

    def log_hyperparams(self, *arguments: Any, **options: Any) -> None:
        """Nothing: ``config.json`` holds them."""

    def save(self) -> None:
        if self._file is not None:
            self._file.flush()

    def finalize(self, status: str) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None


def _finite(value: Any) -> int | float | None:
    if isinstance(value, int):
        return value
    number = float(value)
    return number if math.isfinite(number) else None


class _RunWandbLogger(WandbLogger):
    """Ends its run of Weights & Biases when the training ends; Lightning's would let the next run log into it."""

    def __init__(self, **arguments: Any) -> None:
        import wandb

        super().__init__(**arguments)
        self._wandb_init.pop("anonymous", None)  # only gives rise to a warning
        self._is_ours = wandb.run is None

    def finalize(self, status: str) -> None:
        super().finalize(status)
        if self._is_ours and self._experiment is not None:
            self._experiment.finish(exit_code=0 if status == "success" else 1)


def _wandb_logger(logs: Path, attempt: int, run_name: str, group: str, config: Mapping[str, Any]) -> Logger:
    with _needing("wandb"):
        import wandb
    # The service names its folders by the second, in which two attempts may fall.
    folder = logs / "wandb" / f"attempt-{attempt}"
    folder.mkdir(parents=True, exist_ok=True)
    logger = _RunWandbLogger(
        name=run_name,
        project=os.environ.get("WANDB_PROJECT") or _PROJECT,
        group=group,
        save_dir=folder,
        id=_kept_id(logs / "wandb-run-id") or _keep_id(logs / "wandb-run-id", secrets.token_hex(8)),
        # Not Lightning's `offline`, which changes the environment of the process.
        mode=_wandb_mode(),
        settings=wandb.Settings(silent=True, console="off"),
    )
    logger.log_hyperparams(dict(config))
    return logger


def _wandb_mode() -> str:
    return os.environ.get("WANDB_MODE") or ("online" if _has_wandb_key() else "offline")


def _has_wandb_key() -> bool:
    """Whether ``$WANDB_API_KEY`` is set, or ``wandb login`` was called, which writes to the user's netrc file."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = urlsplit(os.environ.get("WANDB_BASE_URL") or "https://api.wandb.ai").hostname or ""
    try:
        return netrc.netrc(os.environ.get("NETRC")).authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False


def _mlflow_logger(logs: Path, experiment_folder: Path, run_name: str, group: str, config: Mapping[str, Any]) -> Logger:
    with _needing("mlflow", "sqlalchemy", "alembic"):
        import alembic  # noqa: F401 (MLflow imports both only when it opens a database)
        import mlflow  # noqa: F401
        import sqlalchemy  # noqa: F401
    experiment_folder.mkdir(parents=True, exist_ok=True)
    server = os.environ.get("MLFLOW_TRACKING_URI")
    uri = server or f"sqlite:///{(experiment_folder / 'mlflow.db').as_posix()}"
    # Runs side by side would make the tables, and the experiment, at the same time.
    with FileLock(experiment_folder / ".mlflow.lock"), _mlflow_left_alone():
        run_id = _continued_mlflow_run(uri, logs / "mlflow-run-id")
        logger = MLFlowLogger(
            experiment_name=group,
            run_name=run_name,
            tracking_uri=uri,
            # MLflow's own choice is the folder that the process happens to work in.
            artifact_location=None if server else (experiment_folder / "mlartifacts").as_uri(),
            run_id=run_id,
        )
        started = logger.run_id
    if run_id is None and started is not None:
        _keep_id(logs / "mlflow-run-id", started)
    logger.log_hyperparams(dict(config))
    return logger


def _continued_mlflow_run(uri: str, path: Path) -> str | None:
    """The id that ``path`` keeps, with its run set going again; None if there is none, or the run has been deleted."""
    from mlflow.exceptions import MlflowException
    from mlflow.tracking import MlflowClient

    if (run_id := _kept_id(path)) is None:
        return None
    client = MlflowClient(uri)
    try:
        active = client.get_run(run_id).info.lifecycle_stage == "active"
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        active = False
    if not active:
        _LOGGER.warning("MLflow's run %s is not in %s any more; a new one is started.", run_id, uri)
        return None
    client.update_run(run_id, status="RUNNING")
    return run_id


@contextmanager
def _mlflow_left_alone() -> Iterator[None]:
    """Undo what Lightning's logger sets for the whole process, the environment of later runs included; keep quiet."""
    import mlflow

    tracking_uri, variable = mlflow.get_tracking_uri(), os.environ.get("MLFLOW_TRACKING_URI")
    tables = logging.getLogger("mlflow.store.db.utils")
    level = tables.level
    tables.setLevel(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # MLflow 3.17 with SQLAlchemy 2.1
            yield
    finally:
        tables.setLevel(level)
        mlflow.set_tracking_uri(tracking_uri)
        if variable is None:
            os.environ.pop("MLFLOW_TRACKING_URI", None)
        else:
            os.environ["MLFLOW_TRACKING_URI"] = variable


def _experiment_folder(directory: Path) -> Path:
    """The folder of the experiment that a run is part of, its own if it is part of none."""
    directory = directory.resolve()
    return directory.parents[1] if directory.parent.name == "runs" else directory


def _kept_id(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8").strip() or None
    except FileNotFoundError:
        return None


def _keep_id(path: Path, identifier: str) -> str:
    with atomic_write(path) as file:
        file.write(identifier.encode() + b"\n")
    return identifier


@contextmanager
def _needing(*packages: str) -> Iterator[None]:
    try:
        yield
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing not in packages:
            raise
        message = (
            f"tracker {packages[0]!r} needs the package {missing}, which the extra 'tracking' brings: "
            "pip install 'fastdl[tracking]'"
        )
        raise ModuleNotFoundError(message, name=missing) from error
