"""The results file: its form, merging by op, and what an interruption leaves."""

import json

import pytest

from fastdl.bench import results
from fastdl.bench.records import from_json, to_json
from tests.bench.samples import MACHINE, make_record, make_run


def test_a_record_survives_json():
    record = make_record()
    assert from_json(json.loads(json.dumps(to_json(record)))) == record


def test_form_of_the_file(tmp_path):
    path = tmp_path / "machine.json"
    results.save(path, MACHINE, make_run(), [make_record()], finished=True)
    content = json.loads(path.read_text())
    assert content["format"] == results.FORMAT
    assert content["machine"] == MACHINE
    part = content["operators"]["group_norm"]
    assert part["run"]["commit"] == "0123456789abcdef"
    assert part["run"]["threads"] == 2
    assert part["run"]["memory_copy_bandwidth"] == 4e10
    assert part["saved_bytes_ours_over_eager_most"] == 0.5
    assert [row["over_eager"] for row in part["summary"]] == pytest.approx([2.0, 2.0])
    assert [row["microseconds_over_eager"] for row in part["call_overhead"]] == pytest.approx([-1e6, -1e6])
    (case,) = part["cases"]
    assert case["case"]["size"] == [2, 64, 8, 8]
    assert case["rejected"] == {"compile": "no compiler"}
    times = dict(case["measurements"][0]["times"]["ours"])
    assert times.pop("between_visits") is None
    expected = {"median": 1.0, "lower_quartile": 0.9, "upper_quartile": 1.1, "rounds": 7, "calls_per_round": 3}
    assert times == pytest.approx(expected)
    assert results.load_records(part) == [make_record()]


def test_an_op_replaces_its_own_part_alone(tmp_path):
    path = tmp_path / "machine.json"
    results.save(path, MACHINE, make_run(), [make_record(eager=2.0)], finished=True)
    results.save(path, MACHINE, make_run("batch_norm"), [make_record(eager=3.0)], finished=True)
    before = results.read(path)["operators"]["batch_norm"]
    results.save(path, MACHINE, make_run(), [make_record(eager=5.0), make_record((4, 64, 8, 8))], finished=True)
    content = results.read(path)
    assert content["operators"]["batch_norm"] == before
    assert [
        r.measurements[0].times["eager"].median for r in results.load_records(content["operators"]["group_norm"])
    ] == [5, 2]


def test_an_unfinished_run_leaves_the_finished_one(tmp_path):
    path = tmp_path / "machine.json"
    results.save(path, MACHINE, make_run(), [make_record(eager=2.0)], finished=True)
    results.save(path, MACHINE, make_run(), [make_record(eager=9.0)], finished=False)
    content = results.read(path)
    assert results.load_records(content["operators"]["group_norm"]) == [make_record(eager=2.0)]
    assert results.load_records(content["unfinished"]["group_norm"]) == [make_record(eager=9.0)]
    results.save(path, MACHINE, make_run(), [make_record(eager=7.0)], finished=True)
    content = results.read(path)
    assert results.load_records(content["operators"]["group_norm"]) == [make_record(eager=7.0)]
    assert content["unfinished"] == {}


@pytest.mark.parametrize(
    ("text", "found"), [("{torn", "not a results file"), ("[]", "'list'"), ('{"format": 99}', "99")]
)
def test_another_file_is_named_and_left_as_it_is(tmp_path, text, found):
    path = tmp_path / "machine.json"
    path.write_text(text)
    with pytest.raises(results.ResultsError, match=found) as caught:
        results.save(path, MACHINE, make_run(), [make_record()], finished=True)
    assert str(path) in str(caught.value)
    assert path.read_text() == text


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path, monkeypatch):
    path = tmp_path / "machine.json"
    path.write_text("old")

    def fail(descriptor):
        raise OSError("the disk is full")

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(OSError, match="disk is full"):
        results.write_text(path, "new")
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["machine.json"]


def test_a_case_of_another_form_is_an_error():
    with pytest.raises(results.ResultsError, match="unknown form"):
        results.load_records({"cases": [{"case": {"size": [1]}}]})
