"""Searching the learning rate of every arm of an experiment by its validation accuracy.

An arm that gets the learning rate of another may lose for that alone. The search gives each arm its own best one, so
that a comparison can be made both ways: with the same hyper-parameters, and with the best of each arm. It never looks
at the test split, and its runs have a seed that no run of an experiment has.

Needs the extra "experiments": ``pip install 'fastdl[experiments]'``.
"""

from __future__ import annotations

import json
import math
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback

from fastdl.data import ImageDataset
from fastdl.experiments.claims import Arm
from fastdl.experiments.definition import ExperimentDefinition
from fastdl.experiments.folder_lock import held_folder
from fastdl.experiments.search_report import write_search
from fastdl.experiments.search_studies import (
    FIRST_SEARCH_SEED,
    RANDOM_TRIALS,
    ArmStudy,
    Plan,
    TrainTrial,
    open_studies,
    quiet_optuna,
)
from fastdl.models import derive_seed
from fastdl.training import RunConfig, RunResult, TimeLimitReached, train_classifier

if TYPE_CHECKING:
    import optuna

__all__ = ["FIRST_SEARCH_SEED", "TrainTrial", "load_best", "search"]


def search(
    definition: ExperimentDefinition,
    options: Any,
    dataset: ImageDataset,
    folder: Path,
    *,
    trials: int,
    low: float,
    high: float,
    seed: int,
    train: TrainTrial | None = None,
    deadline: float | None = None,
) -> dict[str, Any]:
    """Search the learning rate of each arm, and return what is written to ``best.json``.

    Every arm has a study of Optuna's in ``search.db``: tree-structured Parzen estimators (Bergstra et al. 2011) that
    draw from the range by its logarithm, and the pruning of trials that are below the median of those before them at
    the same epoch, from a third of the epochs on. The first trials of all arms have the same learning rates. Arms take
    turns, so that a search which is cut off has tried about as many for each.

    Called again, it does only what is missing: finished trials stand, one that was cut off goes on from its checkpoint
    with the learning rate it had, and ``trials`` may have grown. The learning rates are those of a search that was
    never cut off, since those of the next trial are drawn with a seed of its own; with another release of Optuna, or on
    a machine that rounds differently, those after the first ones may differ.

    Args:
        definition: of the experiment.
        options: complete, of the type ``definition.options``.
        dataset: that the options name.
        folder: for the search alone: ``search.db``, the runs under ``trials``, ``best.json`` and ``search.md``.
        trials: for each arm; pruned and diverged ones count.
        low, high: range of the learning rate.
        seed: number of the search; its runs have the seed ``FIRST_SEARCH_SEED + seed``.
        train: trains one trial; `fastdl.training.train_classifier` if it is not given.
        deadline: value of ``time.monotonic()`` after which no trial is begun.

    Raises:
        ValueError: a number does not fit, another process is at work in the folder, or it holds a search with other
            settings.
        ModuleNotFoundError: Optuna is missing.
        TimeLimitReached: the deadline has passed; call again to continue.
        KeyboardInterrupt: likewise.
    """
    if trials < 1:
        raise ValueError(f"trials must be 1 or more, got {trials}")
    if not 0 < low < high < math.inf:
        raise ValueError(f"low and high must be above 0 and in this order, got {low} and {high}")
    if seed < 0:
        raise ValueError(f"seed must be 0 or more, got {seed}")
    plan = Plan(definition, options, dataset, folder, trials, low, high, seed, train or _train)
    with held_folder(folder), quiet_optuna(), open_studies(plan) as studies:
        for number in range(trials):
            for place, study in enumerate(studies):
                if study.done > number:
                    continue
                if deadline is not None and time.monotonic() >= deadline:
                    write_search(plan, studies)
                    done = sum(study.done for study in studies)
                    raise TimeLimitReached(f"time is up after {done} of {trials * len(studies)} trials")
                line = _next_trial(plan, study)
                print(f"[{number * len(studies) + place + 1}/{trials * len(studies)}] {line}", flush=True)
                write_search(plan, studies)
        return write_search(plan, studies)


def load_best(path: Path, definition: ExperimentDefinition) -> dict[Arm, float]:
    """Return the learning rate that was best for each arm, from the ``best.json`` of a finished search.

    Raises:
        ValueError: the file is missing, is none of a search, of another experiment or of one that is not finished, or
            has no learning rate for one of its arms.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        experiment, complete = content["experiment"], content["complete"]
        found = {tuple(row["arm"]): row["learning_rate"] for row in content["arms"]}
    except OSError as error:
        advice = f"fastdl search {definition.name} writes it"
        raise ValueError(f"{path} cannot be read ({error.strerror}); {advice}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is not the result of a search: {type(error).__name__}: {error}") from error
    if experiment != definition.name:
        raise ValueError(f"{path} is of the experiment {experiment}, not of {definition.name}")
    if not complete:
        raise ValueError(f"{path} is of a search that is not finished; the command that began it continues it")
    if not found:
        raise ValueError(f"{path} holds no arm")
    for arm, rate in found.items():
        if len(arm) != len(definition.factors):
            names = ", ".join(factor.name for factor in definition.factors)
            raise ValueError(f"{path} holds the arm {list(arm)}; an arm of {definition.name} has the factors {names}")
        if rate is None:
            raise ValueError(
                f"{path} has no learning rate for {definition.describe(arm, 'en')}: all its trials diverged; "
                "search a range of smaller ones"
            )
        if not isinstance(rate, float | int) or not 0 < rate < math.inf:
            raise ValueError(f"{path} holds the learning rate {rate!r} for {definition.describe(arm, 'en')}")
    return {arm: float(rate) for arm, rate in found.items()}


def _train(config: RunConfig, dataset: ImageDataset, directory: Path, callbacks: Sequence[Callback]) -> RunResult:
    return train_classifier(
        config,
        dataset,
        directory,
        description=f"{directory.parent.name} {directory.name}",
        callbacks=callbacks,
        trackers=(),
        evaluate_test=False,
    )


def _next_trial(plan: Plan, arm_study: ArmStudy) -> str:
    """Train the next trial of a study, and return a line about it."""
    import optuna

    number = arm_study.done
    # A sampler's random numbers are not kept in the study. With one seed for all, those of a search that is continued
    # would begin anew, and repeat what it has tried.
    arm_study.study.sampler = optuna.samplers.TPESampler(
        n_startup_trials=RANDOM_TRIALS, seed=derive_seed(plan.seed, "search", number) % 2**32
    )
    trial = arm_study.study.ask()
    rate = trial.suggest_float("learning_rate", plan.low, plan.high, log=True)
    about = f"{plan.definition.describe(arm_study.arm, 'en')}: learning rate {rate:.4g}, "
    directory = plan.folder / "trials" / "_".join(map(str, arm_study.arm)) / f"trial-{number}"
    pruning = _Pruning(trial)
    try:
        result = plan.train(plan.config(arm_study.arm, rate), plan.dataset, directory, [pruning])
    except optuna.TrialPruned:
        arm_study.study.tell(trial, state=optuna.trial.TrialState.PRUNED)
        outcome = f"pruned after {pruning.epochs} epochs"
    else:
        pruning.report(result.history)
        outcome = _tell(arm_study.study, trial, result)
    # It has served its end, and a search of dozens of trials would fill a disk with checkpoints.
    shutil.rmtree(directory / "checkpoints", ignore_errors=True)
    if (best := arm_study.best) is not None:
        outcome += f" (best so far {best.value:.4f} with {best.params['learning_rate']:.4g})"
    return about + outcome


def _tell(study: optuna.Study, trial: optuna.Trial, result: RunResult) -> str:
    if result.status == "diverged":
        trial.set_user_attr("diverged", True)
        study.tell(trial, 0.0)
        return f"diverged after {result.steps} steps"
    assert result.validation_accuracy is not None
    study.tell(trial, result.validation_accuracy)
    return f"validation accuracy {result.validation_accuracy:.4f}"


class _Pruning(Callback):
    """Reports the validation accuracy of each epoch to a trial, and ends it where it falls behind.

    Lightning hands an exception of a callback on after it has closed its loggers.
    """

    def __init__(self, trial: optuna.Trial) -> None:
        self._trial = trial
        self.epochs = 0

    def report(self, history: Sequence[Mapping[str, float | int]]) -> None:
        """Report the epochs that were not reported yet, as those before the checkpoint that training goes on from."""
        for row in history[self.epochs :]:
            self._trial.report(float(row["validation_accuracy"]), self.epochs)
            self.epochs += 1

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        history: Any = getattr(pl_module, "history", [])
        self.report(history)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        accuracy = float(trainer.callback_metrics["validation/accuracy"])
        self._trial.report(accuracy, self.epochs)
        self.epochs += 1
        if self.epochs < (trainer.max_epochs or 0) and self._trial.should_prune():
            import optuna

            raise optuna.TrialPruned(f"after {self.epochs} epochs with a validation accuracy of {accuracy:.4f}")
