"""A run: written case by case, ended by the time limit or Ctrl-C without losing what is measured."""

import io
from dataclasses import replace

import pytest

from fastdl.bench import registry, results
from fastdl.bench.harness import Settings
from fastdl.bench.run import Progress, run_cases
from tests.bench.samples import MACHINE, make_record, make_run

BENCHMARK = registry.load("group_norm")
CASES = BENCHMARK.cases[:4]


class Bench:
    """Measures by making a record up; ``stop_at`` presses Ctrl-C during that case; a case takes ``seconds``."""

    def __init__(self, path, stop_at=None, seconds=10.0):
        self.path, self.stop_at, self.seconds = path, stop_at, seconds
        self.now = 0.0
        self.measured = []
        self.on_disk = []
        self.stream = io.StringIO()

    def measure(self, benchmark, case, settings, say):
        self.on_disk.append(results.read(self.path))
        say("measuring")
        if len(self.measured) == self.stop_at:
            raise KeyboardInterrupt
        self.measured.append(case)
        self.now += self.seconds
        return replace(make_record(), case=case)

    def run(self, **options):
        return run_cases(
            BENCHMARK, CASES, Settings(), make_run(), path=self.path, machine=MACHINE,
            progress=Progress(len(CASES), self.stream), measure=self.measure, clock=lambda: self.now, **options,
        )  # fmt: skip


def cases_in(content, section):
    part = content[section].get("group_norm")
    return [record.case for record in results.load_records(part)] if part else []


def test_the_file_grows_with_every_case_and_is_finished_with_the_last(tmp_path):
    bench = Bench(tmp_path / "machine.json")
    outcome = bench.run()
    assert [len(cases_in(content, "unfinished")) for content in bench.on_disk] == [0, 1, 2, 3]
    assert all(cases_in(content, "operators") == [] for content in bench.on_disk)
    content = results.read(bench.path)
    assert cases_in(content, "operators") == list(CASES)
    assert content["unfinished"] == {}
    assert content["operators"]["group_norm"]["run"]["seconds"] == 40.0
    assert content["operators"]["group_norm"]["run"]["cases_selected"] == 4
    assert outcome.stopped == ""


def test_an_interruption_keeps_what_was_measured(tmp_path):
    bench = Bench(tmp_path / "machine.json", stop_at=2)
    outcome = bench.run()
    assert outcome.interrupted
    assert outcome.stopped == "interrupted after 2 of 4 cases"
    assert [record.case for record in outcome.records] == list(CASES[:2])
    content = results.read(bench.path)
    assert cases_in(content, "unfinished") == list(CASES[:2])
    assert cases_in(content, "operators") == []


@pytest.mark.parametrize(("limit", "cases"), [(100.0, 4), (39.0, 3), (25.0, 2), (0.0, 1)])
def test_no_case_is_started_that_would_pass_the_time_limit(tmp_path, limit, cases):
    bench = Bench(tmp_path / "machine.json")
    outcome = bench.run(time_limit=limit)
    assert len(outcome.records) == cases
    assert not outcome.interrupted
    assert bool(outcome.stopped) == (cases < 4)
    assert cases_in(results.read(bench.path), "operators" if cases == 4 else "unfinished") == list(CASES[:cases])


def test_a_file_that_is_no_results_file_stops_the_run_before_it_costs_anything(tmp_path):
    path = tmp_path / "machine.json"
    path.write_text("{torn")
    bench = Bench(path)
    with pytest.raises(results.ResultsError, match=r"machine\.json"):
        bench.run()
    assert bench.measured == []
    assert path.read_text() == "{torn"


def test_progress_tells_each_case_and_its_ratios(tmp_path):
    bench = Bench(tmp_path / "machine.json")
    bench.run()
    lines = bench.stream.getvalue().splitlines()
    assert len(lines) == 4
    assert lines[0].startswith(
        "[1/4] 4x320x64x64/32 NCHW float32: fwd (pool on) 2.00x eager, fwd+bwd (pool on) 2.00x eager"
    )
    assert "compile rejected" in lines[0]
    assert lines[0].endswith("[10 s]")
