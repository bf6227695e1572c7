"""Searching the learning rate of every arm of an experiment by its validation accuracy.

An arm that gets the learning rate of another may lose for that alone. The search gives each arm its own best one, so
that a comparison can be made both ways: with the same hyper-parameters, and with the best of each arm. It never looks
at the test split, and its runs have a seed that no run of an experiment has.

Needs the extra "experiments": ``pip install 'fastdl[experiments]'``.
"""

from __future__ import annotations

import hashlib
import json
import math
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lightning.pytorch as pl
from filelock import FileLock, Timeout
from lightning.pytorch.callbacks import Callback

from fastdl.data import ImageDataset
from fastdl.data.files import atomic_write, write_json
from fastdl.experiments.claims import Arm
from fastdl.experiments.definition import ExperimentDefinition
from fastdl.models import derive_seed
from fastdl.training import RunConfig, RunResult, TimeLimitReached, train_classifier
from fastdl.training.config import differences

if TYPE_CHECKING:
    import optuna

__all__ = ["FIRST_SEARCH_SEED", "TrainTrial", "load_best", "search"]

TrainTrial = Callable[[RunConfig, ImageDataset, Path, Sequence[Callback]], RunResult]
"""Trains a configuration on a data set in a folder, with callbacks, and does not look at the test split."""

FIRST_SEARCH_SEED = 1000
"""Search number 0 trains with this seed, number 1 with the next; experiments count theirs from 0."""

_RANDOM_TRIALS = 5  # learning rates that are drawn at random before the sampler learns from what came of them
_EDGE = 0.1  # share of the range, by its logarithm, at either end


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
    plan = _Plan(definition, options, dataset, folder, trials, low, high, seed, train or _train)
    with _held(folder), _quiet_optuna(), _studies(plan) as studies:
        for number in range(trials):
            for place, study in enumerate(studies):
                if study.done > number:
                    continue
                if deadline is not None and time.monotonic() >= deadline:
                    _write(plan, studies)
                    done = sum(study.done for study in studies)
                    raise TimeLimitReached(f"time is up after {done} of {trials * len(studies)} trials")
                line = _next_trial(plan, study)
                print(f"[{number * len(studies) + place + 1}/{trials * len(studies)}] {line}", flush=True)
                _write(plan, studies)
        return _write(plan, studies)


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


@dataclass(frozen=True)
class _Plan:
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
class _ArmStudy:
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
        ended = [trial for trial in self.finished() if trial.state.name == "COMPLETE" and not _has_diverged(trial)]
        return max(ended, key=lambda trial: trial.value or 0.0, default=None)


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


@contextmanager
def _held(folder: Path) -> Iterator[None]:
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise ValueError(f"another process is at work in {folder}; wait for it, or choose another folder") from None
    try:
        yield
    finally:
        lock.release()


@contextmanager
def _quiet_optuna() -> Iterator[None]:
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
def _studies(plan: _Plan) -> Iterator[list[_ArmStudy]]:
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
            studies.append(_ArmStudy(arm, study))
        yield studies
    finally:
        storage.remove_session()
        storage.engine.dispose()


def _pruner(epochs: int) -> optuna.pruners.BasePruner:
    import optuna

    # Not in the first third: a large learning rate is behind there, and ahead when it has decayed.
    return optuna.pruners.MedianPruner(n_startup_trials=_RANDOM_TRIALS - 1, n_warmup_steps=math.ceil(epochs / 3))


def _claim(plan: _Plan, arm: Arm, study: optuna.Study) -> None:
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


def _next_trial(plan: _Plan, arm_study: _ArmStudy) -> str:
    """Train the next trial of a study, and return a line about it."""
    import optuna

    number = arm_study.done
    # A sampler's random numbers are not kept in the study. With one seed for all, those of a search that is continued
    # would begin anew, and repeat what it has tried.
    arm_study.study.sampler = optuna.samplers.TPESampler(
        n_startup_trials=_RANDOM_TRIALS, seed=derive_seed(plan.seed, "search", number) % 2**32
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


def _has_diverged(trial: optuna.trial.FrozenTrial) -> bool:
    return bool(trial.user_attrs.get("diverged", False))


def _write(plan: _Plan, studies: Sequence[_ArmStudy]) -> dict[str, Any]:
    """Write ``best.json`` and ``search.md``, and return what the former holds."""
    settings = json.dumps([plan.settings(study.arm) for study in studies], sort_keys=True)
    content = {
        "experiment": plan.definition.name,
        "protocol": getattr(plan.options, "protocol", None),
        "complete": all(study.done >= plan.trials for study in studies),
        "trials": plan.trials,
        "range": [plan.low, plan.high],
        "seed": plan.seed,
        "settings_fingerprint": hashlib.sha256(settings.encode()).hexdigest(),
        "arms": [_summarize(plan, study) for study in studies],
    }
    write_json(plan.folder / "best.json", content)
    with atomic_write(plan.folder / "search.md") as file:
        file.write(_table(plan.definition, content).encode())
    return content


def _summarize(plan: _Plan, arm_study: _ArmStudy) -> dict[str, Any]:
    finished, best = arm_study.finished(), arm_study.best
    rate = None if best is None else best.params["learning_rate"]
    return {
        "arm": list(arm_study.arm),
        "learning_rate": rate,
        "validation_accuracy": None if best is None else best.value,
        "trials": len(finished),
        "pruned": sum(trial.state.name == "PRUNED" for trial in finished),
        "diverged": sum(_has_diverged(trial) for trial in finished),
        "at_edge": rate is not None and _is_at_edge(rate, plan.low, plan.high),
    }


def _is_at_edge(rate: float, low: float, high: float) -> bool:
    """Whether a better learning rate may lie beyond the range."""
    place = math.log(rate / low) / math.log(high / low)
    return not _EDGE <= place <= 1 - _EDGE


def _table(definition: ExperimentDefinition, content: Mapping[str, Any]) -> str:
    low, high = content["range"]
    method = (
        f"The best of {content['trials']} learning rates between {low:g} and {high:g} for each arm, by the accuracy on "
        f"the validation split at the end of training with seed {FIRST_SEARCH_SEED + content['seed']}. The test split "
        "was not looked at."
    )
    lines = [
        f"# Learning rates of {definition.title['en']}",
        "",
        method,
        "",
        *([] if content["complete"] else ["The search is not finished.", ""]),
        "| Arm | Learning rate | Validation accuracy | Trials | Pruned | Diverged | Remark |",
        "|---|---:|---:|---:|---:|---:|---|",
    ]
    for row in content["arms"]:
        rate, accuracy = row["learning_rate"], row["validation_accuracy"]
        cells = [
            definition.describe(tuple(row["arm"]), "en"),
            "-" if rate is None else f"{rate:.4g}",
            "-" if accuracy is None else f"{accuracy:.4f}",
            *(str(row[name]) for name in ("trials", "pruned", "diverged")),
            "at the edge of the range: a better one may lie beyond" if row["at_edge"] else "",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"
