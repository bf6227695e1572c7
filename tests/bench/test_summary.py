"""Ratios and means from injected times."""

from dataclasses import replace

import pytest

from fastdl.bench.cases import Case
from fastdl.bench.records import CaseRecord, Measurement
from fastdl.bench.summary import (
    FORWARD,
    FORWARD_BACKWARD,
    added_to_parts,
    best_other,
    best_peer,
    call_overhead,
    geometric_mean,
    saved_ratio,
    share_of_floor,
    speedup,
    summarise,
)
from fastdl.bench.timing import Spread


def spread(seconds):
    return Spread(seconds, seconds, seconds, 5, 1)


def measurement(pass_name=FORWARD, pool=None, floor=0.5, **seconds):
    times = {name.replace("_", " "): spread(value) for name, value in seconds.items()}
    return Measurement(pass_name, pool, times, work_bytes=8, copy_bandwidth=16.0, floor=floor)


def record(*measurements, size=(4, 64, 8, 8), dtype="float32", saved=None):
    case = Case(size, "nchw", dtype, "silu", "a network", 32)
    return CaseRecord(case, "cpu", 1, saved or {}, {}, measurements)


def test_ratios_are_theirs_over_ours_and_floor_over_ours():
    m = measurement(ours=2.0, eager=5.0, compile=3.0, in_place=4.0, floor=0.5)
    assert speedup(m, "eager") == 2.5
    assert speedup(m, "compile") == 1.5
    assert share_of_floor(m) == 0.25
    assert best_other(m) == "compile"
    assert best_peer(m) == "in place"


def test_what_was_not_measured_has_no_ratio():
    m = measurement(ours=2.0, eager=5.0)
    assert speedup(m, "compile") is None
    assert best_peer(m) is None
    assert best_other(m) == "eager"


def test_geometric_mean():
    assert geometric_mean([1.0, 4.0]) == pytest.approx(2.0)
    assert geometric_mean([0.5, 2.0]) == pytest.approx(1.0)
    with pytest.raises(ValueError, match="no values"):
        geometric_mean([])


def test_summaries_keep_dtypes_passes_and_pool_states_apart():
    records = [
        record(
            measurement(FORWARD, "on", ours=1.0, eager=2.0, compile=3.0),
            measurement(FORWARD_BACKWARD, "on", ours=1.0, eager=1.5),
            measurement(FORWARD, "off", ours=1.0, eager=1.25),
        ),
        record(measurement(FORWARD, "on", ours=1.0, eager=8.0, compile=12.0, floor=0.125)),
        record(measurement(FORWARD, "on", ours=1.0, eager=16.0), dtype="bfloat16"),
    ]
    found = {(s.dtype, s.pass_name, s.pool): s for s in summarise(records)}
    assert list(found)[-1] == ("float32", FORWARD, "off")
    assert len(found) == 4
    forward = found["float32", FORWARD, "on"]
    assert forward.cases == 2
    assert forward.over_eager == pytest.approx(4.0)
    assert forward.over_compile == pytest.approx(6.0)
    assert forward.over_compile_least == 3.0
    assert forward.over_best == pytest.approx(4.0)
    assert forward.floor_share == pytest.approx(0.25)
    assert found["float32", FORWARD_BACKWARD, "on"].over_compile is None
    assert found["bfloat16", FORWARD, "on"].over_eager == pytest.approx(16.0)
    assert found["float32", FORWARD, "off"].over_eager == pytest.approx(1.25)


def test_a_case_whose_own_answer_was_rejected_counts_for_nothing():
    assert summarise([record(measurement(eager=2.0))]) == []


def test_saved_ratio_is_the_largest():
    records = [
        record(saved={"ours": 50, "eager": 100}),
        record(saved={"ours": 60, "eager": 100}),
        record(saved={"ours": 9}),
    ]
    assert saved_ratio(records) == 0.6
    assert saved_ratio([]) is None


def test_what_is_added_to_a_part_is_told_by_contender_pass_and_layout():
    records = [
        record(replace(measurement(ours=ours, eager=2.0), parts={"convolution": Spread(1.0, 1.0, 1.0, 1, 1)}))
        for ours in (1.05, 1.1, 1.5)
    ]
    found = {(a.contender, a.pass_name): (a.median, a.most) for a in added_to_parts(records)}
    ((_, pass_name),) = {key for key in found if key[0] == "ours"}
    assert found["ours", pass_name] == pytest.approx((0.1, 0.5))
    assert found["eager", pass_name] == pytest.approx((1.0, 1.0))
    assert added_to_parts([record(measurement())]) == []


def test_call_overhead_is_told_at_the_small_size_alone():
    small = record(measurement(ours=3e-5, eager=2e-5), size=(2, 64, 8, 8))
    large = record(measurement(ours=1.0, eager=2.0))
    ((found, _, seconds),) = call_overhead([large, small], (2, 64, 8, 8))
    assert found is small
    assert seconds == pytest.approx(1e-5)
