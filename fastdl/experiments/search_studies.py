"""The studies of a search for learning rates: one of Optuna's for each arm, in a database of the search's folder."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning.pytorch.callbacks import Callback

from fastdl.data import ImageDataset
from fastdl.experiments.claims import Arm
from fastdl.experiments.definition import ExperimentDefinition
from fastdl.training import RunConfig, RunResult
from fastdl.training.config import differences

if TYPE_CHECKING:
    import optuna

__all__ = [
    "FIRST_SEARCH_SEED",
    "RANDOM_TRIALS",
    "ArmStudy",
    "Plan",
    "TrainTrial",
    "has_diverged",
    "open_studies",
    "quiet_optuna",
]

TrainTrial = Callable[[RunConfig, ImageDataset, Path, Sequence[Callback]], RunResult]
"""Trains a configuration on a data set in a folder, with callbacks, and does not look at the test split."""

FIRST_SEARCH_SEED = 1000
"""Search number 0 trains with this seed, number 1 with the next; experiments count theirs from 0."""

RANDOM_TRIALS = 5
"""Learning rates that are drawn at random before the sampler learns from what came of them."""


@dataclass(frozen=True)
class Plan:
    """The arguments of a search."""

    definition: ExperimentDefinition
    options: Any
    dataset: ImageDataset
    folder: Path
    trials: int
    low: float
    high: float
    seed: int
    train: TrainTrial

    def arms(self) -> tuple[Arm, ...]:
        return self.definition.arms(self.options)

    def config(self, arm: Arm, learning_rate: float) -> RunConfig:
        seed = FIRST_SEARCH_SEED + self.seed
        config = self.definition.configure(self.options, self.dataset.fingerprint, arm, seed)
        return replace(config, optimizer=replace(config.optimizer, learning_rate=learning_rate))

    def settings(self, arm: Arm) -> dict[str, Any]:
        """All that decides what comes of a study but the number of its trials."""
        config = self.config(arm, self.low).to_dict()
        del config["optimizer"]["learning_rate"]
        settings = {"experiment": self.definition.name, "low": self.low, "high": self.high, "config": config}
        copy: dict[str, Any] = json.loads(json.dumps(settings))
        return copy


@dataclass
class ArmStudy:
    """A study of Optuna's and the arm it is for."""

    arm: Arm
    study: optuna.Study

    def finished(self) -> list[optuna.trial.FrozenTrial]:
        """Trials that ended: with an accuracy, by pruning, or by divergence."""
        return [trial for trial in self.study.get_trials(deepcopy=False) if trial.state.name in ("COMPLETE", "PRUNED")]

    @property
    def done(self) -> int:
        return len(self.finished())

    @property
    def best(self) -> optuna.trial.FrozenTrial | None:
        """The first of the trials with the greatest accuracy at the end, None if all that ended so far diverged."""
        ended = [trial for trial in self.finished() if trial.state.name == "COMPLETE" and not has_diverged(trial)]
        return max(ended, key=lambda trial: trial.value or 0.0, default=None)


def has_diverged(trial: optuna.trial.FrozenTrial) -> bool:
    return bool(trial.user_attrs.get("diverged", False))


@contextmanager
def quiet_optuna() -> Iterator[None]:
    """Silence what Optuna says of every trial.

    Raises:
        ModuleNotFoundError: it is missing.
    """
    try:
        import optuna
    except ModuleNotFoundError as error:
        if error.name != "optuna":
            raise
        message = "the search needs the package optuna: pip install 'fastdl[experiments]'"
        raise ModuleNotFoundError(message, name=error.name) from error
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        yield
    finally:
        optuna.logging.set_verbosity(verbosity)


@contextmanager
def open_studies(plan: Plan) -> Iterator[list[ArmStudy]]:
    """The studies of all arms, with what an interrupted search left in them put in order.

    Raises:
        ValueError: a study was made with other settings.
    """
    import optuna

    # A database, since its transactions are whole or absent however the process ends; a journal file may end in half
    # a line, and its lock outlives a process that is killed.
    storage = optuna.storages.RDBStorage(f"sqlite:///{(plan.folder / 'search.db').resolve().as_posix()}")
    try:
        studies = []
        for arm in plan.arms():
            study = optuna.create_study(
                storage=storage,
                study_name=json.dumps(arm),
                direction="maximize",
                load_if_exists=True,
                pruner=_pruner(plan.config(arm, plan.low).training.epochs),
            )
            _claim(plan, arm, study)
            _requeue(study)
            studies.append(ArmStudy(arm, study))
        yield studies
    finally:
        storage.remove_session()
        storage.engine.dispose()


def _pruner(epochs: int) -> optuna.pruners.BasePruner:
    import optuna

    # Not in the first third: a large learning rate is behind there, and ahead when it has decayed.
    return optuna.pruners.MedianPruner(n_startup_trials=RANDOM_TRIALS - 1, n_warmup_steps=math.ceil(epochs / 3))


def _claim(plan: Plan, arm: Arm, study: optuna.Study) -> None:
    """Keep the settings in a new study, or compare them with those of the one that is there."""
    settings = plan.settings(arm)
    if (present := study.user_attrs.get("settings")) is None:
        study.set_user_attr("settings", settings)
    elif changed := differences(present, settings):
        raise ValueError(
            f"{plan.folder} holds a search with other settings ({'; '.join(changed).replace('config.', '')}); "
            "choose another folder"
        )


def _requeue(study: optuna.Study) -> None:
    """Give up trials that were running when a process ended, and let the next one have their learning rate."""
    import optuna

    for trial in study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.RUNNING,)):
        study.tell(trial.number, state=optuna.trial.TrialState.FAIL)
        if trial.params:
            study.enqueue_trial(trial.params, skip_if_exists=False)
