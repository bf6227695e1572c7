"""Command-line options that the experiments share."""

from __future__ import annotations

import pytest
import torch
import tyro

from fastdl import ops
from fastdl.experiments.options import parse_integers, parse_seeds, resolve_backend, resolve_device
from fastdl.experiments.sigmoid_vs_relu import Options


def parse(line: str) -> Options:
    return tyro.cli(Options, args=line.split())


def test_a_whole_command_line() -> None:
    options = parse("--data-dir ../shared/data --dataset cifar10 --depths 1,4,8 --seeds 1 --epochs 2")
    assert (str(options.data_dir), options.dataset) == ("../shared/data", "cifar10")
    assert (options.depths, options.seeds, options.epochs) == ((1, 4, 8), (0,), 2)
    assert options.resume


def test_the_rest_of_the_command_line() -> None:
    options = parse(
        "--batch-size 32 --device cpu --backend reference --output-dir out --no-resume --precision bf16-mixed "
        "--gradient-clip-norm None --early-stopping-patience 3"
    )
    assert (options.batch_size, options.device, options.backend, str(options.output_dir)) == (
        32,
        "cpu",
        "reference",
        "out",
    )
    assert (options.resume, options.precision, options.gradient_clip_norm) == (False, "bf16-mixed", None)
    assert options.early_stopping_patience == 3


def test_defaults_survive_being_shown() -> None:
    assert parse("") == Options()


@pytest.mark.parametrize(
    ("text", "seeds"), [("1", (0,)), ("3", (0, 1, 2)), ("0,5", (0, 5)), ("5,", (5,)), ("2,1,0", (2, 1, 0))]
)
def test_seeds_are_a_number_or_a_list(text: str, seeds: tuple[int, ...]) -> None:
    assert parse_seeds(text) == seeds
    assert parse(f"--seeds {text}").seeds == seeds


@pytest.mark.parametrize("text", ["", "a", "1,,2", "1;2", "1.5", "1,1"])
def test_other_lists_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="expected"):
        parse_integers(text)


@pytest.mark.parametrize("text", ["0", "-1", "-1,2"])
def test_impossible_seeds_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"expected .*seeds"):
        parse_seeds(text)


@pytest.mark.parametrize("line", ["--depths 1,x", "--seeds 0", "--dataset mnist", "--nonsense 1", "--depths"])
def test_mistakes_end_with_status_2(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        parse(line)
    assert caught.value.code == 2
    assert line.split()[0] in capsys.readouterr().err


def test_devices() -> None:
    assert resolve_device("cpu") == "cpu"
    assert resolve_device("auto") == ("cuda" if torch.cuda.is_available() else "cpu")
    for name in ("gpu", "cpu:0", "cuda:x", "mps"):
        with pytest.raises(ValueError, match="device must be auto, cpu, cuda or cuda:N, got"):
            resolve_device(name)
    with pytest.raises(ValueError, match="device 'cuda:99' is not there: torch sees"):
        resolve_device("cuda:99")


def test_backends(monkeypatch: pytest.MonkeyPatch) -> None:
    assert resolve_backend("auto") == "auto"
    assert resolve_backend("reference") == "reference"
    with pytest.raises(ValueError, match=r"backend must be one of auto, reference, .* got 'mkl'"):
        resolve_backend("mkl")
    missing = ops.dispatch.BackendStatus(False, "there is none")
    monkeypatch.setattr("fastdl.backends", lambda: {"reference": missing})
    with pytest.raises(ValueError, match="backend 'reference' is not available: there is none"):
        resolve_backend("reference")


def test_the_environment_sets_the_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTDL_BACKEND", "reference")
    assert Options().backend == "reference"
    monkeypatch.delenv("FASTDL_BACKEND")
    assert Options().backend == "auto"
