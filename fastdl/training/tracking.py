"""Loggers of a run: CSV."""

from lightning.pytorch.loggers import CSVLogger

TRACKERS = ("tensorboard", "wandb", "mlflow")


def make_loggers(directory, attempt, trackers, **kwargs):
    return [CSVLogger(directory / "logs", name="csv", version=f"attempt-{attempt}")]


def finish(loggers, status):
    pass
