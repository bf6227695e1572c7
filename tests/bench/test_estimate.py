"""How long a run will take, by results whose times a test chooses."""

from dataclasses import replace

import pytest

from fastdl.bench import estimate, machine, registry, results
from fastdl.bench.cases import select
from fastdl.bench.records import Measurement
from fastdl.bench.timing import Spread
from tests.bench.samples import MACHINE, make_record, make_run


def a_record(size, seconds_on, seconds_off=None):
    """A case whose forward pass was measured for so long with the pool on, and off."""
    record = make_record(size)

    def measurement(pool, seconds):
        # Two contenders, each a quarter of the time in ten rounds of five calls, and a part of the work the other half.
        spread = Spread(seconds / 4 / 50, 0.0, 1.0, 10, 5)
        part = Spread(seconds / 2 / 20, 0.0, 1.0, 20, 1)
        return Measurement("forward", pool, {"ours": spread, "eager": spread}, 1, 1.0, 1.0, {"convolution": part})

    pools = [("on", seconds_on)] + ([("off", seconds_off)] if seconds_off else [])
    return replace(record, measurements=tuple(measurement(*pool) for pool in pools))


@pytest.fixture
def part():
    """Two cases: 3 + 5 s of measuring with the pool on, 1 s with it off, and 2 s a case of everything else."""
    records = [a_record((2, 64, 8, 8), 3.0), a_record((4, 320, 64, 64), 5.0, 1.0)]
    return results.part(make_run(seconds=13.0), records)


def test_measuring_is_what_the_rounds_took():
    times = estimate.measuring_seconds(a_record((2, 64, 8, 8), 3.0, 2.0))
    assert times == {"on": pytest.approx(3.0), "off": pytest.approx(2.0)}


def test_known_cases_take_what_they_took_in_the_pools_that_are_asked_for(part):
    known = estimate.known([part])
    small, large = (record.case for record in results.load_records(part))
    assert known.rest == pytest.approx(2.0)
    assert known.seconds(large, ("on", "off")) == pytest.approx(2.0 + 5.0 + 1.0)
    assert known.seconds(large, ("on",)) == pytest.approx(2.0 + 5.0)
    assert known.seconds(small, ("on", "off")) == pytest.approx(2.0 + 3.0)
    assert known.seconds(small, (None,)) == pytest.approx(2.0 + 3.0)
    unknown = replace(small, size=(1, 1, 1, 1))
    assert known.seconds(unknown, ("on",)) == pytest.approx(2.0 + 4.0)


def test_effort_scales_the_measuring_alone(part):
    table = {"group_norm": estimate.known([part])}
    cases = [record.case for record in results.load_records(part)]
    assert estimate.seconds_of("group_norm", cases, ("on",), table, 1.0) == pytest.approx(12.0)
    assert estimate.seconds_of("group_norm", cases, ("on",), table, 0.5) == pytest.approx(2 * 2.0 + 4.0)
    # An op that was never measured takes what the others take a case; where nothing was measured, a guess.
    assert estimate.seconds_of("another", cases, ("on",), table, 1.0) == pytest.approx(12.0)
    assert estimate.seconds_of("another", cases, ("on",), {}, 1.0) == 2 * estimate.UNKNOWN


def test_this_machines_results_have_the_say_and_a_gpus_none(tmp_path, part):
    slow = results.part(make_run(seconds=113.0), results.load_records(part))
    for name, device, content in (("a-machine", "cpu", slow), ("b-machine-2-cores", "cpu", part), ("c", "cuda", slow)):
        file = {"format": 1, "machine": {**MACHINE, "device": device}, "operators": {"group_norm": content}}
        results.write(tmp_path / f"{name}.json", file)
    (tmp_path / "torn.json").write_text("{")
    table = estimate.from_folder(tmp_path, "b-machine-2-cores", ["group_norm", "attention"])
    assert list(table) == ["group_norm"]
    assert table["group_norm"].rest == pytest.approx(2.0)
    assert estimate.from_folder(tmp_path, "another-2-cores", ["group_norm"])["group_norm"].rest == pytest.approx(52.0)


def test_the_default_run_fits_a_quarter_of_an_hour_by_the_committed_results():
    """The measured one of the committed machine; the limit itself is kept by the clock, whatever the estimate says."""
    names = registry.names()
    table = estimate.from_folder(machine.BENCH / "results", "amd-epyc-2-cores", names)
    cases = {name: select(registry.load(name).cases, shapes="default") for name in names}
    assert sum(estimate.seconds_of(name, cases[name], ("on",), table, 1.0) for name in names) < 14.5 * 60
