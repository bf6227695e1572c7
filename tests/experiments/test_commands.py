"""``fastdl report`` and ``fastdl search`` from the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fastdl import cli

TINY = "--depths 1 --epochs 2 --width 4 --train-examples 200 --backend reference --jobs 1".split()  # noqa: SIM905


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("commands") / "digits"
    assert cli.main(["experiment", "sigmoid_vs_relu", "--output-dir", str(folder), "--seeds", "2", *TINY]) == 0
    return folder


def test_a_report_is_written_again_elsewhere(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["report", "sigmoid_vs_relu", "--output-dir", str(finished), "--lang", "ko", "--to", str(tmp_path)]
    assert cli.main(words) == 0
    written = [Path(line) for line in capsys.readouterr().out.split()]
    assert written[0] == tmp_path / "report.ko.md"
    assert all(path.stat().st_size for path in written)
    assert "깊이에 따른" in written[0].read_text(encoding="utf-8")


def test_a_report_without_results_says_how_to_get_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(["report", "sigmoid_vs_relu"]) == 2
    assert "there are no results under runs/sigmoid_vs_relu" in capsys.readouterr().err
    assert cli.main(["report", "sigmoid_vs_relu", "--output-dir", str(tmp_path)]) == 2
    assert "results.json" in capsys.readouterr().err


def test_the_newest_results_are_reported_where_none_are_named(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import shutil

    monkeypatch.chdir(tmp_path)
    shutil.copytree(finished, tmp_path / "runs" / "sigmoid_vs_relu" / "smoke")
    assert cli.main(["report", "sigmoid_vs_relu"]) == 0
    assert Path(capsys.readouterr().out.split()[0]) == Path("runs/sigmoid_vs_relu/smoke/report.md")


@pytest.mark.parametrize("command", ["experiment", "report", "search"])
def test_help_lists_the_experiments(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([command, "--help"]) == 0
    assert "conv_activation_norm_position" in capsys.readouterr().out
    assert cli.main([command]) == 2
    assert cli.main([command, "nope"]) == 2
    assert "there is no experiment 'nope'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--trials", "0"], "trials must be 1 or more, got 0"),
        (["--low", "1", "--high", "0.1"], "low and high must be above 0 and in this order, got 1.0 and 0.1"),
    ],
)
def test_impossible_searches_are_refused(
    words: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["search", "sigmoid_vs_relu", "--output-dir", str(tmp_path), *words]) == 2
    assert message in capsys.readouterr().err


def test_what_a_search_finds_goes_into_the_experiment(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("optuna")
    folder = tmp_path / "search"
    words = ["search", "sigmoid_vs_relu", "--output-dir", str(folder), "--trials", "2", *TINY]
    assert cli.main(words) == 0
    assert f"--learning-rates {folder / 'best.json'}" in capsys.readouterr().out
    best = json.loads((folder / "best.json").read_text())
    assert best["complete"] is True
    for path in folder.rglob("test-evaluations.jsonl"):
        pytest.fail(f"the search looked at the test split: {path}")
    words = ["experiment", "sigmoid_vs_relu", "--output-dir", str(tmp_path / "out"), "--seeds", "2", *TINY]
    assert cli.main([*words, "--learning-rates", str(folder / "best.json")]) == 0
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    rates = {found["activation"]: found["config"]["optimizer"]["learning_rate"] for found in results["runs"]}
    assert rates == {row["arm"][0]: row["learning_rate"] for row in best["arms"]}


def test_when_time_is_up_the_status_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["experiment", "sigmoid_vs_relu", "--output-dir", str(tmp_path), "--seeds", "2", *TINY]
    assert cli.main([*words, "--time-limit", "1e-6"]) == 75
    error = capsys.readouterr().err
    assert "time is up after 0 of 4 runs" in error
    assert "continue with: fastdl experiment sigmoid_vs_relu" in error
