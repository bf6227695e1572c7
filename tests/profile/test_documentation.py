"""What docs/profiling.md tells one to type can be typed."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from fastdl.profile.command import make_parser

TEXT = (Path(__file__).parents[2] / "docs" / "profiling.md").read_text(encoding="utf-8")


def test_the_commands_are_understood() -> None:
    commands = re.findall(r"^(?:\$ OMP_NUM_THREADS=\d )?fastdl profile (.+)$", TEXT, re.MULTILINE)
    assert len(commands) >= 7
    kinds = [make_parser().parse_args(shlex.split(command)).kind for command in commands]
    assert set(kinds) == {"op", "model", "script"}


def test_every_option_is_explained(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        make_parser().parse_args(["script", "--help"])
    names = set(re.findall(r"--[a-z-]+", capsys.readouterr().out)) - {"--help"}
    assert len(names) >= 8
    for name in names:
        assert f"`{name}" in TEXT, name


def test_the_program_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (program,) = re.findall(r"^```python\n(.+?)^```", TEXT, re.MULTILINE | re.DOTALL)
    assert "profile() as taken" in program
    monkeypatch.chdir(tmp_path)
    exec(compile(program, "docs/profiling.md", "exec"), {})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["profile.json", "trace.json"]


def test_every_column_is_explained() -> None:
    for column in ("calls", "ms", "self ms", "share", "GB/s", "GFLOP/s", "roofline", "launches", "kept MB"):
        assert re.search(rf"^\| {re.escape(column)} \|", TEXT, re.MULTILINE), column
