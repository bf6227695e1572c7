"""fastdl train vit and fastdl explain vit, from the command line to the files."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import safetensors.torch
import torch
from PIL import Image

import fastdl
from fastdl import cli
from fastdl.data import load_dataset
from fastdl.recipes import vit
from fastdl.recipes.trained import load_trained
from fastdl.recipes.vit_picture import explain

pytestmark = pytest.mark.usefixtures("one_thread")

SMALL = ["--dataset", "digits", "--epochs", "2", "--width", "16", "--depth", "2", "--backend", "reference"]


@pytest.fixture(scope="module")
def small_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("vit") / "run"
    assert cli.main(["train", "vit", *SMALL, "--output-dir", str(folder)]) == 0
    return folder


def test_a_small_transformer_learns_the_digits(tmp_path: Path) -> None:
    """The recipe as it is, over 95 % of digits that it has not seen."""
    folder = vit.run(vit.Options(dataset="digits", output_dir=tmp_path))
    results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    assert results["complete"]
    assert results["runs"][0]["test_accuracy"] > 0.95


def test_the_report_tells_what_was_trained_and_what_came_of_it(small_run: Path) -> None:
    results = json.loads((small_run / "results.json").read_text(encoding="utf-8"))
    (run,) = results["runs"]
    assert (results["experiment"], run["status"], len(run["history"])) == ("train_vit", "finished", 2)
    report = (small_run / "results.md").read_text(encoding="utf-8")
    assert f"Test accuracy {100 * run['test_accuracy']:.2f} %" in report
    assert "Chance is 10 %" in report
    assert "depth 2" in report
    assert (small_run / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert b"<svg" in (small_run / "curves.svg").read_bytes()


def test_a_finished_run_is_not_run_again(small_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["train", "vit", *SMALL, "--output-dir", str(small_run)]) == 0
    assert "finished before" in capsys.readouterr().out
    assert cli.main(["train", "vit", *SMALL, "--depth", "3", "--output-dir", str(small_run)]) == 2
    assert "holds results with other settings (model.arguments.depth: 2 there, 3 here)" in capsys.readouterr().err


def test_options_reach_the_configuration() -> None:
    options = vit.Options(dataset="cifar10", backend="reference", device="cpu")
    config = vit.run_config(options, "x", (32, 32))
    assert config.model.arguments["patch_size"] == vit.PRESETS["cifar10"].patch_size
    assert (config.data.crop_padding, config.data.random_flip, config.optimizer.name) == (4, True, "adamw")
    changes = {"limit_train": 7, "patch_size": 8, "pooling": "mean", "mixup_alpha": 0.0, "average_decay": None}
    changed = vit.run_config(dataclasses.replace(options, **changes), "x", (32, 32))
    assert (changed.data.train_examples, changed.data.mixup_alpha, changed.training.average_decay) == (7, 0.0, None)
    assert (changed.model.arguments["patch_size"], changed.model.arguments["pooling"]) == (8, "mean")


@pytest.mark.parametrize("checkpoint", ["weights.safetensors", "checkpoints/step-*.ckpt"])
def test_a_trained_model_comes_back_with_what_its_images_need(small_run: Path, checkpoint: str) -> None:
    path = sorted((small_run / "runs" / "seed-0").glob(checkpoint))[-1]
    trained = load_trained(path)
    assert trained.class_names == tuple("0123456789")
    assert trained.image_shape == (1, 8, 8)
    digits = load_dataset("digits")
    result = json.loads((path.parents[1 if "*" in checkpoint else 0] / "result.json").read_text(encoding="utf-8"))
    with torch.no_grad(), fastdl.use_backend("reference"):
        found = trained.model(trained.normalize(digits.test.images)).argmax(1)
    # Normalising by another order of operations may turn an image whose two best classes are equal to the last bit.
    assert abs((found == digits.test.labels).float().mean().item() - result["test_accuracy"]) < 0.005


@pytest.mark.parametrize("suffix", ["png", "svg"])
def test_explain_draws_a_picture(
    small_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], suffix: str
) -> None:
    weights = small_run / "runs" / "seed-0" / "weights.safetensors"
    picture = tmp_path / f"attention.{suffix}"
    words = ["--checkpoint", str(weights), "--image", "5", "--output", str(picture), "--backend", "reference"]
    assert cli.main(["explain", "vit", *words]) == 0
    captured = capsys.readouterr()
    assert captured.out == f"Written to {picture}\n"
    label = int(load_dataset("digits").test.labels[5])
    assert f"It is labelled {label}." in captured.err
    if suffix == "svg":
        assert b"<svg" in picture.read_bytes()
    else:
        with Image.open(picture) as image:
            assert min(image.size) > 500


def test_explain_takes_an_image_file(small_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, picture = tmp_path / "digit.jpg", tmp_path / "attention.png"
    Image.new("RGB", (40, 30), "white").save(file)
    weights = small_run / "runs" / "seed-0" / "weights.safetensors"
    words = ["--checkpoint", str(weights), "--image", str(file), "--output", str(picture), "--layer", "0"]
    assert cli.main(["explain", "vit", *words]) == 0
    assert "labelled" not in capsys.readouterr().err
    assert picture.is_file()


def test_the_explanation_is_of_the_model(small_run: Path) -> None:
    trained = load_trained(small_run / "runs" / "seed-0" / "weights.safetensors")
    image = trained.normalize(load_dataset("digits").test.images[0])
    with fastdl.use_backend("reference"), torch.no_grad():
        explanation = explain(trained.model, image)  # type: ignore[arg-type]
        expected = trained.model(image.unsqueeze(0)).softmax(-1)[0]
    torch.testing.assert_close(explanation.probabilities, expected)
    assert (explanation.layer, explanation.depth) == (1, 2)
    assert explanation.heads.shape == (4, 4, 4)
    assert explanation.rollout.shape == (4, 4)
    assert 0 < explanation.rollout.sum() < 1  # the rest is the class token's own


def test_mistakes_are_one_line(small_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = small_run / "runs" / "seed-0"
    weights, other, text = run / "weights.safetensors", tmp_path / "other.safetensors", tmp_path / "x.png"
    safetensors.torch.save_file({"x": torch.zeros(1)}, other)
    text.write_text("no image")
    for checkpoint, image, more, message in (
        (weights, "100000", [], "image must be from 0 to 359 for the test split of digits"),
        (weights, "0", ["--layer", "2"], "layer must be from 0 to 1, or negative from the end, got 2"),
        (weights, str(tmp_path / "none.png"), [], "No such file"),
        (weights, str(text), [], "cannot identify image file"),
        (other, "0", [], "holds no weights of a training run of this package: its metadata lacks config, data"),
        (run / "config.json", "0", [], "holds no weights of a training run"),
        (tmp_path / "none.ckpt", "0", [], "there is no file"),
    ):
        words = ["--checkpoint", str(checkpoint), "--image", image, "--output", str(tmp_path / "y.png"), *more]
        assert cli.main(["explain", "vit", *words]) == 2, message
        (line,) = capsys.readouterr().err.strip().splitlines()
        assert message in line
    assert not (tmp_path / "y.png").exists()
