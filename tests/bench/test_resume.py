"""What may be taken over from an interrupted run, and what may not."""

from dataclasses import replace

import pytest

from fastdl.bench import results
from fastdl.bench.harness import Settings
from fastdl.bench.resume import earlier
from fastdl.bench.run import run_cases
from tests.bench.samples import MACHINE, make_record, make_run
from tests.bench.test_run import BENCHMARK, CASES, Bench

RECORDS = [replace(make_record(), case=case) for case in CASES]


@pytest.fixture
def interrupted(tmp_path):
    path = tmp_path / "machine.json"
    old = make_run(seconds=20.0, date="2026-01-01T00:00:00+00:00", matrix_rates={"float32": 7e10})
    results.save(path, MACHINE, old, RECORDS[:2], finished=False)
    return path


def test_the_cases_that_are_done_are_taken_over_with_their_circumstances(interrupted):
    new = make_run(date="2026-02-02T00:00:00+00:00", memory_copy_bandwidth=3e10, load_average_before=0.5)
    found = earlier(results.read(interrupted), new, CASES)
    assert not found.finished
    assert found.records == RECORDS[:2]
    assert "2 of 4 cases were measured on 2026-01-01" in found.note
    assert found.run.date == "2026-01-01T00:00:00+00:00"
    assert found.run.seconds == 20.0
    assert found.run.matrix_rates == {"float32": 7e10}
    assert found.run.overhead_size == (2, 64, 8, 8)
    assert found.run.continued == [
        {"date": "2026-02-02T00:00:00+00:00", "memory_copy_bandwidth": 3e10, "load_average_before": 0.5}
    ]


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"commit": "another"}, "commit"),
        ({"versions": {"torch": "2.14.0"}}, "versions"),
        ({"threads": 4}, "threads"),
        ({"selection": {"shapes": "quick"}}, "selection"),
    ],
)
@pytest.mark.parametrize("finished", [False, True])
def test_other_circumstances_are_another_run(tmp_path, change, word, finished):
    path = tmp_path / "machine.json"
    results.save(path, MACHINE, make_run(), RECORDS, finished=finished)
    found = earlier(results.read(path), make_run(**change), CASES)
    assert (found.finished, found.records, found.run) == (False, [], None)
    assert f"measured anew, since what there is has {word}" in found.note


def test_a_finished_op_is_left_out_and_one_that_lacks_a_case_is_not(tmp_path):
    path = tmp_path / "machine.json"
    results.save(path, MACHINE, make_run(), RECORDS, finished=True)
    assert earlier(results.read(path), make_run(), CASES).finished
    assert not earlier(results.read(path), make_run(), (*CASES, replace(CASES[0], size=(9, 9, 9, 9)))).finished
    assert earlier(results.read(path), make_run("batch_norm"), CASES).note == ""


@pytest.mark.parametrize(("commit", "doubt"), [("a" * 40, False), ("a" * 40 + "+changes", True), (None, True)])
def test_a_commit_with_changes_is_not_known_to_be_the_same(tmp_path, commit, doubt):
    path = tmp_path / "machine.json"
    results.save(path, MACHINE, make_run(commit=commit), RECORDS, finished=True)
    note = earlier(results.read(path), make_run(commit=commit), CASES).note
    assert ("cannot be told" in note) == doubt


def test_a_resumed_run_measures_the_rest_and_is_whole_in_the_end(interrupted):
    found = earlier(results.read(interrupted), make_run(), CASES)
    bench = Bench(interrupted)
    outcome = run_cases(
        BENCHMARK, CASES, Settings(), found.run, path=interrupted, machine=MACHINE, earlier=found.records,
        measure=bench.measure, clock=lambda: bench.now,
    )  # fmt: skip
    assert bench.measured == list(CASES[2:])
    assert [record.case for record in outcome.records] == list(CASES)
    content = results.read(interrupted)
    assert content["unfinished"] == {}
    part = content["operators"]["group_norm"]
    assert [record.case for record in results.load_records(part)] == list(CASES)
    assert part["run"]["seconds"] == 20.0 + 2 * bench.seconds
    assert [case["seconds"] for case in part["cases"]] == [0.0, 0.0, bench.seconds, bench.seconds]


def test_a_resumed_run_that_is_interrupted_again_keeps_both_parts(interrupted):
    found = earlier(results.read(interrupted), make_run(), CASES)
    bench = Bench(interrupted, stop_at=1)
    outcome = run_cases(
        BENCHMARK, CASES, Settings(), found.run, path=interrupted, machine=MACHINE, earlier=found.records,
        measure=bench.measure, clock=lambda: bench.now,
    )  # fmt: skip
    assert outcome.interrupted
    kept = results.load_records(results.read(interrupted)["unfinished"]["group_norm"])
    assert [record.case for record in kept] == list(CASES[:3])


def test_a_run_of_which_every_case_is_done_is_finished_without_measuring(tmp_path):
    path = tmp_path / "machine.json"
    results.save(path, MACHINE, make_run(), RECORDS, finished=False)
    found = earlier(results.read(path), make_run(), CASES)
    bench = Bench(path)
    run_cases(BENCHMARK, CASES, Settings(), found.run, path=path, machine=MACHINE, earlier=found.records,
              measure=bench.measure)  # fmt: skip
    assert bench.measured == []
    assert list(results.read(path)["operators"]) == ["group_norm"]
