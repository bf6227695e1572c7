"""The ``fastdl`` command.

``doctor`` and ``bench`` must work where only the core of the package is installed, so the first word is looked up in a
table here, and what needs an extra is imported by the command that was asked for.
"""

from __future__ import annotations

import logging
import os
import shlex
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

__all__ = ["main"]

_USAGE_ERROR = 2
_INTERRUPTED = 130
_TIME_IS_UP = 75  # of sysexits.h: temporary, the same command goes on
_TERMINATED = 143  # what fastdl.training makes of SIGTERM: 128 and the signal's number

# What the extras bring, by the name it is imported under.
_MODULES_OF_EXTRAS = {
    "train": "PIL filelock lightning matplotlib pyarrow safetensors sklearn tensorboard torchmetrics tqdm tyro",
    "experiments": "koreanize_matplotlib markdown optuna scipy statsmodels",
    "tracking": "alembic mlflow sqlalchemy wandb",
}
_EXTRA_OF = {module: extra for extra, modules in _MODULES_OF_EXTRAS.items() for module in modules.split()}


@dataclass(frozen=True)
class Command:
    """A command: the line that the help shows for it, and the function that runs it with the words after it."""

    summary: str
    run: Callable[[list[str]], int]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit status: 0, 2 for a mistake of the user's, 130 if interrupted.

    A mistake is told in one line. With ``FASTDL_DEBUG=1`` in the environment the traceback is shown as well.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    try:
        return _dispatch(words)
    except KeyboardInterrupt:
        print(f"\nInterrupted. {_how_to_continue(words)}", file=sys.stderr)
        return _INTERRUPTED
    except SystemExit as stop:
        if stop.code == _TERMINATED:
            print(f"Terminated. {_how_to_continue(words)}", file=sys.stderr)
        raise
    except BrokenPipeError:
        # The reader of our output has gone, as `head` does. Python would complain again when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        if type(error).__name__ == "TimeLimitReached":  # its module brings Lightning, which most commands do without
            print(f"fastdl: {error}. {_how_to_continue(words)}", file=sys.stderr)
            return _TIME_IS_UP
        message = _user_message(error)
        if message is None:
            raise
        if os.environ.get("FASTDL_DEBUG") == "1":
            traceback.print_exc()
        print(f"fastdl: {message}", file=sys.stderr)
        return _USAGE_ERROR


def _dispatch(words: list[str]) -> int:
    if not words or words[0] in ("-h", "--help"):
        print(_help())
        return 0 if words else _USAGE_ERROR
    if words[0] == "--version":
        import fastdl

        print(f"fastdl {fastdl.__version__}")
        return 0
    if words[0] not in _COMMANDS:
        raise ValueError(f"there is no command {words[0]!r}; there is {', '.join(_COMMANDS)} (see fastdl --help)")
    return _COMMANDS[words[0]].run(words[1:])


def _help() -> str:
    width = max(map(len, _COMMANDS))
    lines = [f"  {name:{width}}  {command.summary}" for name, command in _COMMANDS.items()]
    return "\n".join(
        [
            "usage: fastdl COMMAND [OPTIONS]",
            "",
            "Fused training kernels for PyTorch, and the experiments built on them.",
            "",
            *lines,
            "",
            "fastdl COMMAND --help tells more; fastdl --version shows the version.",
        ]
    )


def _experiment(words: list[str]) -> int:
    from fastdl.experiments import load_experiment

    if not words or words[0] in ("-h", "--help"):
        _print_experiments("experiment")
        return 0 if words else _USAGE_ERROR
    experiment = load_experiment(words[0])
    import tyro

    prog = f"fastdl experiment {experiment.name}"
    options = tyro.cli(experiment.options, prog=prog, args=words[1:])
    folder = experiment.run(options)
    report = folder / ("report.md" if options.lang == "en" else f"report.{options.lang}.md")
    print(f"\n{report.read_text(encoding='utf-8')}")
    print(f"Written to {folder}: results.json, {report.name}, the same as HTML, figures, runs/")
    return 0


def _report(words: list[str]) -> int:
    if not words or words[0] in ("-h", "--help"):
        _print_experiments("report")
        return 0 if words else _USAGE_ERROR
    from fastdl.experiments.commands import report

    return report(words)


def _search(words: list[str]) -> int:
    if not words or words[0] in ("-h", "--help"):
        _print_experiments("search")
        return 0 if words else _USAGE_ERROR
    from fastdl.experiments.commands import search

    return search(words)


def _print_experiments(command: str) -> None:
    from fastdl.experiments import EXPERIMENTS

    print(f"usage: fastdl {command} NAME [OPTIONS]\n")
    width = max(map(len, EXPERIMENTS))
    for name, summary in EXPERIMENTS.items():
        print(f"  {name:{width}}  {summary}")
    print(f"\nfastdl {command} NAME --help tells the options of one.")


def _train(words: list[str]) -> int:
    from fastdl.recipes import RECIPES, load_recipe

    if not words or words[0] in ("-h", "--help"):
        _print_models("train", RECIPES)
        return 0 if words else _USAGE_ERROR
    recipe = load_recipe(words[0])
    import tyro

    folder = recipe.run(tyro.cli(recipe.options, prog=f"fastdl train {recipe.name}", args=words[1:]))
    report = folder / "results.md"
    print(f"\n{report.read_text(encoding='utf-8')}\nWritten to {folder}: results.json, results.md, curves.*, runs/")
    return 0


def _explain(words: list[str]) -> int:
    from fastdl.recipes import EXPLANATIONS, load_explanation

    if not words or words[0] in ("-h", "--help"):
        _print_models("explain", EXPLANATIONS)
        return 0 if words else _USAGE_ERROR
    explanation = load_explanation(words[0])
    import tyro

    picture = explanation.run(tyro.cli(explanation.options, prog=f"fastdl explain {explanation.name}", args=words[1:]))
    print(f"Written to {picture}")
    return 0


def _print_models(command: str, table: Mapping[str, tuple[str, str]]) -> None:
    print(f"usage: fastdl {command} MODEL [OPTIONS]\n")
    width = max(map(len, table))
    for name, (_, summary) in table.items():
        print(f"  {name:{width}}  {summary}")
    print(f"\nfastdl {command} MODEL --help tells the options of one.")


def _doctor(words: list[str]) -> int:
    if any(word in ("-h", "--help") for word in words):
        print("usage: fastdl doctor [--json]\n\nTells what works on this machine, and what to do about the rest.")
        return 0
    if unknown := [word for word in words if word != "--json"]:
        raise ValueError(f"fastdl doctor takes --json, got {' '.join(unknown)}")
    from fastdl.doctor import main as doctor_main

    return doctor_main(json="--json" in words)


def _demo(words: list[str]) -> int:
    from fastdl.demo import main as demo_main

    return demo_main(words)


def _bench(words: list[str]) -> int:
    from fastdl.bench.__main__ import main as bench_main

    status: int = bench_main(words)
    return status


def _profile(words: list[str]) -> int:
    from fastdl.profile.command import main as profile_main

    return profile_main(words)


def _inspect(words: list[str]) -> int:
    from fastdl.inspection.command import main as inspect_main

    return inspect_main(words)


def _tune(words: list[str]) -> int:
    from fastdl.tuning.command import main as tune_main

    return tune_main(words)


_COMMANDS = {
    "train": Command("train a model by its recipe, or continue it", _train),
    "explain": Command("draw what a trained model looks at", _explain),
    "experiment": Command("run a controlled experiment, or continue it", _experiment),
    "report": Command("write the report of an experiment again, in English or Korean", _report),
    "search": Command("search the best learning rate of every arm of an experiment", _search),
    "demo": Command("a few minutes of everything: parity, speed, a small experiment", _demo),
    "bench": Command("measure the ops beside eager torch, torch.compile and the machine's limit", _bench),
    "doctor": Command("tell what works on this machine", _doctor),
    "inspect": Command("tell what kernels compile to: registers, occupancy, instructions", _inspect),
    "tune": Command("measure which sizes of kernels, or which backends, are fastest here", _tune),
    "profile": Command("tell what the ops take in a call, a model or a script of yours", _profile),
}


def _how_to_continue(words: list[str]) -> str:
    if words[:1] in (["experiment"], ["search"], ["train"]):
        # A second --no-resume would move aside what has just been made.
        again = [word for word in words if word != "--no-resume"]
        return f"What is done is kept; continue with: fastdl {shlex.join(again)}"
    return "Nothing is left half-written."


def _user_message(error: Exception) -> str | None:
    """Return what to tell the user in place of a traceback, or None for what only a programmer can mend."""
    from fastdl import BackendError

    if isinstance(error, ModuleNotFoundError):
        missing = (error.name or "").partition(".")[0]
        if (extra := _EXTRA_OF.get(missing)) is not None:
            return f"this needs the package {missing}, which the extra {extra!r} brings: pip install 'fastdl[{extra}]'"
        return None
    if isinstance(error, ValueError | BackendError | OSError):
        return " ".join(str(error).split())
    return None
