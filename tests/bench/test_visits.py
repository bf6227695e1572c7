"""Several visits to a case: what they make of its times, and runs that are ended between them."""

import math
from dataclasses import replace

import pytest

from fastdl.bench import __main__ as command
from fastdl.bench import results
from fastdl.bench.run import Outcome
from fastdl.bench.timing import Effort, Spread
from fastdl.bench.visits import effort_of_one, merged, merged_spread
from tests.bench.samples import make_record
from tests.bench.test_run import CASES, Bench


def test_a_spread_reaches_from_the_one_visits_quartile_to_the_others():
    found = merged_spread(Spread(4.0, 3.5, 4.5, 10, 2), Spread(9.0, 8.0, 9.5, 5, 8))
    assert found == Spread(6.0, 3.5, 9.5, 15, 4, 2.25)
    assert merged_spread(Spread(9.0, 8.0, 9.5, 5, 8), Spread(4.0, 3.5, 4.5, 10, 2)).between_visits == 2.25
    assert merged_spread(Spread(2.0, 1.0, 3.0, 7, 1), Spread(2.0, 1.5, 2.5, 7, 1)) == Spread(2.0, 1.0, 3.0, 14, 1, 1.0)


def test_two_records_become_one():
    first = make_record()
    slow = tuple(
        replace(m, times={n: Spread(*(4 * t for t in (s.median, s.lower_quartile, s.upper_quartile)), 3, 1)
                          for n, s in m.times.items()}, floor=4 * m.floor)
        for m in first.measurements
    )  # fmt: skip
    both = merged(replace(first, seconds=2.0), replace(first, measurements=slow, seconds=3.0))
    assert (both.visits, both.seconds) == (2, 5.0)
    for m, before in zip(both.measurements, first.measurements, strict=True):
        assert (m.pass_name, m.pool, m.work_bytes) == (before.pass_name, before.pool, before.work_bytes)
        assert m.floor == pytest.approx(2 * before.floor)
        for name, spread in m.times.items():
            assert spread.median == pytest.approx(2 * before.times[name].median)
            assert spread.lower_quartile == before.times[name].lower_quartile
            assert spread.upper_quartile == pytest.approx(4 * before.times[name].upper_quartile)
            assert spread.between_visits == pytest.approx(4)


def test_who_was_rejected_once_is_not_among_the_times():
    first = make_record()
    without = tuple(replace(m, times={n: s for n, s in m.times.items() if n != "eager"}) for m in first.measurements)
    later = replace(first, measurements=without, rejected={"eager": "wrong output"})
    for both in (merged(first, later), merged(later, first)):
        assert both.rejected["eager"] == "wrong output"
        assert all("eager" not in m.times and "ours" in m.times for m in both.measurements)


def test_the_effort_is_shared_out():
    assert effort_of_one(Effort(seconds=1.4, least_rounds=7), 2) == Effort(seconds=0.7, least_rounds=4)
    assert effort_of_one(Effort(), 1) == Effort()


def test_all_cases_are_seen_before_the_second_visits(tmp_path):
    bench = Bench(tmp_path / "machine.json")
    outcome = bench.run(visits=2)
    assert bench.measured == [*CASES, *CASES]
    content = results.read(bench.path)
    assert content["unfinished"] == {}
    records = results.load_records(content["operators"]["group_norm"])
    assert [record.visits for record in records] == [2] * 4
    assert [record.seconds for record in records] == [20.0] * 4
    assert [record.case for record in outcome.records] == list(CASES)
    assert "[1/4, visit 2]" in bench.stream.getvalue()


def test_an_interrupted_second_visit_goes_on(tmp_path):
    bench = Bench(tmp_path / "machine.json", stop_at=6)
    outcome = bench.run(visits=2)
    assert outcome.interrupted
    assert outcome.stopped == "interrupted after 6 of 8 visits"
    part = results.read(bench.path)["unfinished"]["group_norm"]
    again = Bench(bench.path)
    again.run(visits=2, earlier=results.load_records(part))
    assert again.measured == list(CASES[2:])
    records = results.load_records(results.read(bench.path)["operators"]["group_norm"])
    assert [record.visits for record in records] == [2] * 4


def test_a_time_limit_in_the_second_visits_leaves_a_finished_run(tmp_path):
    bench = Bench(tmp_path / "machine.json")
    outcome = bench.run(visits=2, time_limit=55.0)
    assert outcome.stopped == "the time limit of 55 s leaves 3 cases with 1 of 2 visits"
    content = results.read(bench.path)
    assert content["unfinished"] == {}
    records = results.load_records(content["operators"]["group_norm"])
    assert [record.visits for record in records] == [2, 1, 1, 1]
    assert math.isclose(content["operators"]["group_norm"]["run"]["seconds"], 50.0)


def test_nothing_left_to_measure_is_finished(tmp_path):
    bench = Bench(tmp_path / "machine.json")
    earlier = [replace(make_record(), case=case, visits=2) for case in CASES]
    bench.run(visits=2, earlier=earlier)
    assert bench.measured == []
    assert len(results.read(bench.path)["operators"]["group_norm"]["cases"]) == 4


def test_first_visits_alone_leave_an_unfinished_run(tmp_path):
    bench = Bench(tmp_path / "machine.json")
    outcome = bench.run(visits=1, last=False)
    content = results.read(bench.path)
    assert "group_norm" not in content["operators"]
    assert [record.visits for record in results.load_records(content["unfinished"]["group_norm"])] == [1] * 4
    again = Bench(bench.path)
    again.run(visits=2, earlier=outcome.records)
    assert again.measured == list(CASES)
    assert results.read(bench.path)["unfinished"] == {}


def test_all_ops_are_seen_before_any_is_visited_again(tmp_path, monkeypatch, capsys):
    seen = []

    def measure(benchmark, cases, settings, run, **others):
        seen.append((benchmark.name, others["visits"], others["last"], len(others["earlier"])))
        return Outcome(run, [replace(make_record(), case=case, visits=others["visits"]) for case in cases])

    monkeypatch.setattr(command, "run_cases", measure)
    monkeypatch.setattr(command.ceilings, "memory_copy_bandwidth", lambda *_: 4e10)
    monkeypatch.setattr(command.ceilings, "matrix_rate", lambda *_: 1e11)
    arguments = ["rms_norm", "dropout", "--output-dir", str(tmp_path), "--shapes", "full", "--dtype", "float32"]
    assert command.main(arguments) == 0
    names, visits, last, earlier = zip(*seen, strict=True)
    assert names == ("rms_norm", "dropout") * 2
    assert visits == (1, 1, 2, 2)
    assert last == (False, False, True, True)
    assert earlier[:2] == (0, 0)
    assert earlier[2] > 0 < earlier[3]
    told = capsys.readouterr()
    assert "rms_norm, visit 1 of 2\ndropout, visit 1 of 2" in told.err
    assert told.out.count("measured here") == 2
    seen.clear()
    assert command.main([*arguments, "--shapes", "quick"]) == 0
    assert [one[1:] for one in seen] == [(1, True, 0)] * 2


def test_first_visits_leave_time_for_the_second_ones(tmp_path, monkeypatch):
    given = []

    def measure(benchmark, cases, settings, run, **others):
        given.append(others["time_limit"])
        return Outcome(run, [replace(make_record(), case=case, visits=others["visits"]) for case in cases])

    monkeypatch.setattr(command, "run_cases", measure)
    monkeypatch.setattr(command.ceilings, "memory_copy_bandwidth", lambda *_: 4e10)
    monkeypatch.setattr(command.ceilings, "matrix_rate", lambda *_: 1e11)
    monkeypatch.setattr(command.estimate, "seconds_of", lambda *_: 4000.0)
    arguments = ["rms_norm", "dropout", "--output-dir", str(tmp_path), "--dtype", "float32", "--time-limit"]
    assert command.main([*arguments, "10000"]) == 0  # there is time for all: whatever the others will not need
    assert given == pytest.approx([4000, 6000, 8000, 10000], abs=60)
    given.clear()
    assert command.main([*arguments, "4000"]) == 0  # there is not: each has its part of what is left
    assert given == pytest.approx([1000, 4000 / 3, 2000, 4000], abs=60)
