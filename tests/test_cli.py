"""The fastdl command: what it finds, what it refuses, and what it says when something is missing."""

from __future__ import annotations

import builtins
import dataclasses
import json
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import fastdl
from fastdl import cli

CHECKOUT = Path(__file__).parents[1]


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"fastdl {fastdl.__version__}\n"


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--help"]) == 0
    text = capsys.readouterr().out
    assert all(f"  {name} " in text for name in ("train", "explain", "experiment", "demo", "bench", "doctor"))
    assert cli.main([]) == 2
    assert capsys.readouterr().out == text


def test_experiment_help_lists_the_experiments(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["experiment", "--help"]) == 0
    assert re.search(r"\n  sigmoid_vs_relu +accuracy of", capsys.readouterr().out)
    assert cli.main(["experiment"]) == 2


@pytest.mark.parametrize("command", ["train", "explain"])
def test_models_are_listed(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([command, "--help"]) == 0
    assert f"usage: fastdl {command} MODEL [OPTIONS]\n\n  vit  a " in capsys.readouterr().out
    assert cli.main([command]) == 2


@pytest.mark.parametrize(
    ("command", "required"),
    [
        ("train", {"dataset", "data-dir", "epochs", "limit-train", "output-dir", "device", "backend", "no-resume"}),
        ("explain", {"checkpoint", "image", "output", "layer", "data-dir"}),
    ],
)
def test_options_of_models_are_explained(command: str, required: set[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main([command, "vit", "--help"])
    assert caught.value.code == 0
    assert required <= set(re.findall(r"--([a-z-]+)", capsys.readouterr().out))


def test_experiment_options_are_explained(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(["experiment", "sigmoid_vs_relu", "--help"])
    assert caught.value.code == 0
    text = capsys.readouterr().out
    required = {"dataset", "data-dir", "depths", "seeds", "epochs", "batch-size", "device", "backend", "output-dir"}
    assert required | {"resume", "no-resume"} <= set(re.findall(r"--([a-z-]+)", text))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["fit"],
            "there is no command 'fit'; there is train, explain, experiment, report, search, demo, bench, doctor",
        ),
        (["train", "nope"], "there is no model 'nope' to train; there is vit"),
        (["explain", "nope"], "there is no model 'nope' to explain; there is vit"),
        (["train", "vit", "--dataset", "digits", "--patch-size", "3"], "image_size must be a multiple of the patch"),
        (["train", "vit", "--dataset", "digits", "--epochs", "0"], "epochs must be 1 or more, got 0"),
        (["experiment", "nope"], "there is no experiment 'nope'"),
        (["experiment", "sigmoid_vs_relu", "--depths", "9"], "depths must be between 1 and 8, got 9"),
        (["experiment", "sigmoid_vs_relu", "--device", "tpu"], "device must be auto, cpu, cuda or cuda:N, got 'tpu'"),
        (["experiment", "sigmoid_vs_relu", "--backend", "mkl"], "backend must be one of auto, reference"),
        (["experiment", "sigmoid_vs_relu", "--epochs", "0"], "epochs must be 1 or more, got 0"),
        (["experiment", "sigmoid_vs_relu", "--output-dir", "/dev/null/x"], "Not a directory"),
        (["doctor", "--xml"], "fastdl doctor takes --json, got --xml"),
    ],
)
def test_a_mistake_is_one_line_and_status_2(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(words) == 2
    captured = capsys.readouterr()
    (line,) = captured.err.strip().splitlines()
    assert line.startswith("fastdl: ")
    assert message in line


def test_missing_data_says_which_file_to_put_where(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fastdl.data import cifar

    def no_network(*arguments: object) -> Path:
        raise OSError("no network")

    monkeypatch.setattr(cifar, "download", no_network)
    monkeypatch.setenv("FASTDL_CACHE", str(tmp_path / "cache"))
    words = ["experiment", "sigmoid_vs_relu", "--dataset", "cifar10", "--data-dir", str(tmp_path)]
    assert cli.main(words) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert f"{tmp_path}: expected cifar10 as" in line
    assert "the download failed (no network). Put cifar-10-python.tar.gz (MD5 c58f30108f718f92721af3b95e74349a)" in line


def test_the_traceback_is_there_for_who_asks(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FASTDL_DEBUG", "1")
    assert cli.main(["fit"]) == 2
    assert "Traceback (most recent call last)" in capsys.readouterr().err


@pytest.mark.parametrize("missing", ["lightning", "tyro", "sklearn", "torchmetrics"])
def test_a_missing_extra_is_named(
    missing: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    original = builtins.__import__

    def without(name: str, *arguments: Any, **options: Any) -> ModuleType:
        if name.partition(".")[0] == missing:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return original(name, *arguments, **options)

    for name in [name for name in sys.modules if name.startswith(("fastdl.experiments", "fastdl.training"))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(builtins, "__import__", without)
    assert cli.main(["experiment", "sigmoid_vs_relu", "--output-dir", "/dev/null/never"]) == 2
    expected = (
        f"fastdl: this needs the package {missing}, which the extra 'train' brings: pip install 'fastdl[train]'\n"
    )
    assert capsys.readouterr().err == expected


def test_an_error_of_ours_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(words: list[str]) -> int:
        raise KeyError("a mistake in the code")

    monkeypatch.setitem(cli._COMMANDS, "doctor", cli.Command("", broken))
    with pytest.raises(KeyError):
        cli.main(["doctor"])


def test_an_interrupted_experiment_says_how_to_continue(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(words: list[str]) -> int:
        raise KeyboardInterrupt

    monkeypatch.setitem(cli._COMMANDS, "experiment", cli.Command("", interrupted))
    assert cli.main(["experiment", "sigmoid_vs_relu", "--no-resume", "--output-dir", "a b"]) == 130
    assert "continue with: fastdl experiment sigmoid_vs_relu --output-dir 'a b'" in capsys.readouterr().err


def test_a_terminated_experiment_says_how_to_continue(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def terminated(words: list[str]) -> int:
        raise SystemExit(143)

    monkeypatch.setitem(cli._COMMANDS, "experiment", cli.Command("", terminated))
    with pytest.raises(SystemExit):
        cli.main(["experiment", "sigmoid_vs_relu", "--depths", "1,2"])
    assert "continue with: fastdl experiment sigmoid_vs_relu --depths 1,2\n" in capsys.readouterr().err


def test_the_demo_shows_parity_speed_table_and_plot(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """The whole demo on a smaller shape and fewer, shorter runs."""
    import fastdl.bench.quick as quick
    from fastdl.experiments import sigmoid_vs_relu

    compare, run = quick.compare_group_norm, sigmoid_vs_relu.run
    monkeypatch.setattr(quick, "compare_group_norm", lambda: compare((2, 32, 4, 4), 8, repetitions=2))

    def small_run(options: sigmoid_vs_relu.Options) -> Path:
        assert options.protocol == "smoke"
        return run(dataclasses.replace(options, depths=(1,), epochs=1, width=4, backend="reference", jobs=1))

    monkeypatch.setattr(sigmoid_vs_relu, "run", small_run)
    assert cli.main(["demo", "--output-dir", str(tmp_path / "demo")]) == 0
    text = capsys.readouterr().out
    assert re.search(r"\n  reference +ready\n", text)
    error, eager_error = map(float, re.findall(r"(?:fastdl|eager torch) (\d\.\d+e-\d+)", text))
    assert 0 < error < 1e-5
    assert 0 < eager_error < 1e-5
    assert re.search(r"fastdl \d+\.\d\d ms, eager torch \d+\.\d\d ms, so \d+\.\d\d times the speed", text)
    assert re.search(r"\| ReLU, blocks 1 +\| .* ± .* \(sd .*, n 3\)", text)
    (plot,) = re.findall(r"\nPlot: (.*)\n", text)
    assert Path(plot).read_bytes().startswith(b"\x89PNG")


def test_arguments_reach_bench_and_doctor(monkeypatch: pytest.MonkeyPatch) -> None:
    received: list[Any] = []
    doctor, bench = ModuleType("fastdl.doctor"), ModuleType("fastdl.bench.__main__")
    doctor.main = lambda json=False: received.append(json) or 0  # type: ignore[attr-defined]
    bench.main = lambda words: received.append(words) or 1  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "fastdl.doctor", doctor)
    monkeypatch.setitem(sys.modules, "fastdl.bench.__main__", bench)
    assert cli.main(["doctor", "--json"]) == 0
    assert cli.main(["doctor"]) == 0
    assert cli.main(["bench", "group_norm", "--shapes", "quick"]) == 1
    assert received == [True, False, ["group_norm", "--shapes", "quick"]]


def test_light_commands_import_nothing_heavy() -> None:
    script = """
import contextlib, io, json, sys
from fastdl.cli import main
with contextlib.redirect_stdout(io.StringIO()):
    codes = [main(words) for words in (["--version"], ["--help"], ["experiment", "--help"], ["train", "--help"])]
print(json.dumps([codes, sorted(sys.modules)]))
"""
    result = subprocess.run(
        [sys.executable, "-c", script], cwd=CHECKOUT, capture_output=True, text=True, check=True, timeout=120
    )
    codes, modules = json.loads(result.stdout)
    assert codes == [0, 0, 0, 0]
    heavy = set(cli._EXTRA_OF) - {"filelock", "tqdm"}  # which torch imports itself
    assert sorted(heavy & set(modules)) == []


def test_a_closed_pipe_is_no_error() -> None:
    script = "import sys; from fastdl.cli import main; sys.exit(main(['--help']))"
    process = subprocess.Popen(
        [sys.executable, "-c", script], cwd=CHECKOUT, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None
    process.stdout.close()
    assert process.stderr is not None
    assert process.stderr.read() == b""
    process.stderr.close()
    process.wait(60)
