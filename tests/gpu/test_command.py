"""The command itself, which runs without a GPU: its jobs, its records, its deadline and what it says."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from tests.gpu import __main__ as command
from tests.gpu import record
from tests.gpu.jobs import Job, Result, Runner
from tests.gpu.plugin import share_of
from tests.gpu.sanitized import calls, check, run

ROOT = Path(__file__).resolve().parents[2]

WRITE = """
import sys, time
from pathlib import Path
from tests.gpu import record
path = Path(sys.argv[1])
record.begin(path)
record.write(path, "", "collected", 2)
record.write(path, "first", "passed", 0.5)
exec(sys.argv[2])
"""


def a_job(name: str, then: str = "record.write(path, 'second', 'passed')", **options: object) -> Job:
    return Job(name, (sys.executable, "-c", WRITE, "{record}", then), **options)  # type: ignore[arg-type]


def a_runner(folder: Path, seconds: float = 60.0, **options: object) -> tuple[Runner, list[str]]:
    said: list[str] = []
    return Runner(folder, workers=2, seconds=seconds, facts={"commit": "abc"}, say=said.append, **options), said  # type: ignore[arg-type]


def summary(folder: Path) -> dict[str, Result]:
    content = json.loads((folder / "summary.json").read_text())
    assert content["commit"] == "abc"
    return {job["name"]: Result(**job) for job in content["jobs"]}


def test_jobs_are_judged_by_their_records_and_their_status(tmp_path: Path) -> None:
    runner, said = a_runner(tmp_path)
    fails = "record.write(path, 'second', 'failed', 1.0, 'off by 3'); sys.exit(1)"
    runner.run(
        [
            a_job("good"),
            a_job("bad", fails),
            a_job("broken", "record.write(path, 'second', 'passed'); raise SystemExit('no such device')"),
            a_job("absent", "record.write(path, 'second', 'passed'); sys.exit(40)", statuses=((40, "not here"),)),
            a_job("short", "pass"),
        ]
    )
    found = summary(tmp_path)
    states = {name: result.state for name, result in found.items()}
    assert states == {
        "good": "passed", "bad": "failed", "broken": "failed", "absent": "skipped", "short": "unfinished",
    }  # fmt: skip
    assert found["good"].outcomes == {"passed": 2}
    assert found["bad"].failures == [{"test": "second", "message": "off by 3"}]
    assert "no such device" in found["broken"].note
    assert found["absent"].note == "not here"
    assert "1 of 2 tests" in found["short"].note
    assert "off by 3" in "\n".join(said)
    assert command.verdict(runner.results) == 1


def test_a_job_waits_for_those_that_it_comes_after(tmp_path: Path) -> None:
    runner, _ = a_runner(tmp_path)
    runner.run([a_job("second", after=("first",)), a_job("first"), a_job("third", after=("gone",))])
    order = [result.name for result in runner.results]
    assert order.index("first") < order.index("second")
    assert set(order) == {"first", "second", "third"}
    assert command.verdict(runner.results) == 0


def test_what_was_found_until_the_time_was_over_is_kept(tmp_path: Path) -> None:
    runner, _ = a_runner(tmp_path, seconds=2.5, grace=0.2)
    began = time.monotonic()
    runner.run([a_job("endless", "time.sleep(600)"), a_job("quick"), a_job("late", after=("endless",))])
    assert time.monotonic() - began < 30
    found = summary(tmp_path)
    assert {name: result.state for name, result in found.items()} == {
        "endless": "unfinished", "quick": "passed", "late": "unfinished",
    }  # fmt: skip
    assert found["endless"].outcomes == {"passed": 1}
    assert command.verdict(runner.results) == command.UNFINISHED


def test_an_interruption_ends_the_processes_and_keeps_the_rest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runner, _ = a_runner(tmp_path)
    naps = iter([None] * 30)

    def sleep(seconds: float) -> None:
        if next(naps, "over") == "over":
            raise KeyboardInterrupt

    monkeypatch.setattr("tests.gpu.jobs.time.sleep", sleep)
    with pytest.raises(KeyboardInterrupt):
        runner.run([a_job("endless", "time.sleep(600)")])
    assert summary(tmp_path)["endless"].status == -9


def test_a_torn_record_is_read_up_to_the_tear(tmp_path: Path) -> None:
    path = tmp_path / "record.jsonl"
    assert record.read(path) == []
    record.begin(path)
    record.write(path, "one", "passed", 1.0)
    with path.open("a") as file:
        file.write('{"test": "tw')
    assert [line["test"] for line in record.read(path)] == ["one"]


TESTS = """
import pytest, time, warnings

@pytest.mark.parametrize("backend", ["triton", "cuda"])
@pytest.mark.parametrize("case", range(8))
@pytest.mark.timeout(10)
def test_it(case, backend):
    time.sleep({pause})
    assert (case, backend) != (3, "cuda"), "off by 3"

def test_skipped():
    pytest.skip("not on this GPU")
"""


def run_pytest(folder: Path, *options: str, pause: float = 0.0) -> list[dict[str, object]]:
    """Outcomes of a file of tests, with none of the plugins that this machine may have."""
    (folder / "test_it.py").write_text(TESTS.replace("{pause}", str(pause)))
    (folder / "pytest.ini").write_text("[pytest]\naddopts = --strict-markers\n")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "tests.gpu.plugin", str(folder)]
    subprocess.run(
        [*command, "--record", str(folder / "record.jsonl"), *options],
        env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
        capture_output=True,
        check=False,
        timeout=120,
    )
    return record.read(folder / "record.jsonl")


def test_the_plugin_records_every_outcome_without_other_plugins(tmp_path: Path) -> None:
    lines = run_pytest(tmp_path)
    assert lines[0]["outcome"] == "collected"
    assert lines[0]["seconds"] == 17
    outcomes = [str(line["outcome"]) for line in lines[1:]]
    assert {name: outcomes.count(name) for name in set(outcomes)} == {"passed": 15, "failed": 1, "skipped": 1}
    messages = {str(line["outcome"]): str(line["message"]) for line in lines[1:]}
    assert "off by 3" in messages["failed"]
    assert "not on this GPU" in messages["skipped"]


def test_shares_are_all_of_the_tests_and_keep_backends_together(tmp_path: Path) -> None:
    shares = [{str(line["test"]) for line in run_pytest(tmp_path, "--share", f"{k}/3")[1:]} for k in (1, 2, 3)]
    assert sum(map(len, shares)) == len(set().union(*shares)) == 17
    assert all(
        len([name for name in share if "triton" in name]) == len([n for n in share if "cuda" in n]) for share in shares
    )
    assert share_of("test_it[a-float32-triton]", 5) == share_of("test_it[a-float32-cuda]", 5)


def test_the_plugin_stops_at_the_deadline(tmp_path: Path) -> None:
    lines = run_pytest(tmp_path, "--deadline", str(time.time() - 1))
    assert [line["outcome"] for line in lines] == ["collected", "skipped"]
    assert "the time is over" in str(lines[1]["message"])


def test_every_part_is_there_and_can_be_chosen(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    sanitizer = tmp_path / "compute-sanitizer"
    sanitizer.touch()
    monkeypatch.setattr("tests.gpu.__main__.shutil.which", lambda name: str(sanitizer))
    jobs = {job.name: job for job in command.all_jobs()}
    assert len(jobs) == len(command.all_jobs())
    assert {"build", "gpu", "ops-group_norm-1", "ops-group_norm-4", "ops-batch_norm-2", "nn-norms"} <= set(jobs)
    assert {f"{tool}-{backend}" for tool in command.SANITIZER_TOOLS for backend in command.BACKENDS} <= set(jobs)
    files = {path.name for folder in ("ops", "nn") for path in (ROOT / "tests" / folder).glob("test_*.py")}
    run = {Path(word).name for job in jobs.values() for word in job.command if word.endswith(".py")}
    assert run == files
    only = command.chosen(list(jobs.values()), ["racecheck-cuda"])
    assert [job.name for job in only] == ["build", "sanitized-cuda", "racecheck-cuda"]
    assert command.TIME_LIMIT < 480


def test_hypothesis_is_not_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    find = command.importlib.util.find_spec
    monkeypatch.setattr(command.importlib.util, "find_spec", lambda name: None if name == "hypothesis" else find(name))
    names = [job.name for job in command.all_jobs()]
    assert "ops-random" not in names
    assert "ops-layouts" in names


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_without_a_gpu_the_status_tells_so(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    for options in (["--output-dir", str(tmp_path / "out")], ["--only-check"]):
        assert command.main(options) == command.NO_GPU == 3
        assert "No GPU" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_the_sanitized_calls_reach_every_layout_and_are_right_on_the_cpu(tmp_path: Path) -> None:
    chosen = list(calls())
    assert len({call.name for call in chosen}) == len(chosen)
    for op in ("group_norm", "batch_norm"):
        kinds = {(call.dtype, call.channels_last) for call in chosen if call.op == op}
        assert kinds == {(d, c) for d in (torch.float32, torch.float16, torch.bfloat16) for c in (False, True)}
    path = tmp_path / "record.jsonl"
    assert run(path, "reference", float("inf"), lambda call, backend: check(call, backend, "cpu")) == 0
    assert [line["outcome"] for line in record.read(path)][1:] == ["passed"] * len(chosen)


def test_a_wrong_result_fails_and_the_deadline_skips(tmp_path: Path) -> None:
    path = tmp_path / "record.jsonl"
    times = iter(range(1000))
    wrong = lambda call, backend: "result 0 is off by 3"  # noqa: E731
    assert run(path, "triton", 4.0, wrong, lambda: next(times)) == 1
    outcomes = [line["outcome"] for line in record.read(path)][1:]
    assert outcomes[:2] == ["failed", "failed"]
    assert set(outcomes[2:]) == {"skipped"}
