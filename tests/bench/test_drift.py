"""How far visits lie apart, and what a comparison makes of it: known answers, and two runs of an unsteady machine."""

import math
import random
from dataclasses import replace

import pytest

from fastdl.bench.comparison import REGRESSION, WITHIN, compare, measured
from fastdl.bench.drift import SHARE, factor, of_records, sentence
from fastdl.bench.records import to_json
from fastdl.bench.timing import Spread
from fastdl.bench.visits import merged
from tests.bench.samples import MACHINE, make_record


def apart(factor):
    return Spread(1.0, 0.99, 1.01, 100, 1, factor)


def test_it_is_the_factor_that_nineteen_of_twenty_are_within():
    factors = [1 + part / 100 for part in range(1, 101)]
    random.Random(0).shuffle(factors)
    assert factor(map(apart, factors)) == 1 + SHARE
    assert factor(map(apart, [1.5])) == 1.5
    assert factor(map(apart, [])) == 1.0
    assert factor([Spread(1.0, 0.9, 1.1, 7, 1)]) == 1.0


def test_a_time_is_known_to_the_root_of_it():
    # The mean of two visits has a fourth of their difference's variance: half the distance on the scale of logarithms.
    bounds = measured(apart(1.21), 1.21)
    assert (bounds.low, bounds.high) == pytest.approx((1 / 1.1, 1.1))
    assert measured(apart(1.21)).high == pytest.approx(1.01)
    # Quartiles that are further away stand.
    assert measured(Spread(1.0, 0.5, 1.01, 100, 1), 1.21).low == pytest.approx(0.5)


def test_the_reader_is_told_of_ours_and_of_the_others():
    first = make_record()
    assert sentence([first]) == ""
    slow = tuple(
        replace(m, times={name: replace(s, median=s.median * (1.1 if name == "ours" else 1.25))
                          for name, s in m.times.items()})
        for m in first.measurements
    )  # fmt: skip
    both = merged(first, replace(first, measurements=slow))
    assert of_records([both], ours=True) == pytest.approx(1.1)
    assert of_records([both], ours=False) == pytest.approx(1.25)
    assert "95% of fastdl's times moved by at most 10%, of the others' by at most 25%" in sentence([both])


def content(generator, scatter, ours=1.0, cases=200):
    """A results file of a machine whose speed differs from visit to visit by ``scatter``, with steady rounds."""

    def visit(size):
        record = make_record(size=(2, 64, 8, size), ours=ours, eager=2.0)
        moved = tuple(
            replace(m, times={name: s.of_one(1) if scatter == 0 else scaled(s, generator.gauss(0, scatter))
                              for name, s in m.times.items()})
            for m in record.measurements
        )  # fmt: skip
        return replace(record, measurements=moved)

    run = {"commit": "", "versions": {}, "threads": 2, "selection": {}, "memory_copy_bandwidth": 4e10}
    records = [to_json(merged(visit(size), visit(size))) for size in range(1, cases + 1)]
    return {"machine": MACHINE, "operators": {"group_norm": {"run": run, "cases": records}}, "unfinished": {}}


def scaled(spread, logarithm):
    median = spread.median * math.exp(logarithm)
    return Spread(median, 0.995 * median, 1.005 * median, 100, 1)


@pytest.mark.parametrize("scatter", [0.03, 0.2])
def test_two_runs_of_one_program_agree_as_often_as_is_said(scatter):
    generator = random.Random(1)
    rows = compare(content(generator, scatter), content(generator, scatter)).rows
    within = sum(row.verdict == WITHIN for row in rows) / len(rows)
    assert len(rows) == 800
    assert 0.92 < within <= 1


def test_what_exceeds_the_drift_is_still_found():
    generator = random.Random(2)
    rows = compare(content(generator, 0.03), content(generator, 0.03, ours=1.25)).rows
    ours = [row.verdict for row in rows if row.contender == "ours"]
    assert ours.count(REGRESSION) == len(ours)
    assert sum(row.verdict == WITHIN for row in rows if row.contender == "eager") > 0.92 * len(ours)


def test_what_moves_a_whole_visit_is_not_in_the_ratio_to_eager():
    """Where machines differ the verdict goes by that ratio: visits far apart must not hide a change of it."""

    def visit(logarithm, ours):
        record = make_record(ours=ours)
        moved = tuple(
            replace(m, times={name: scaled(s, logarithm) for name, s in m.times.items()}) for m in record.measurements
        )
        return replace(record, measurements=moved)

    def file(machine, ours):
        both = merged(visit(0.0, ours), visit(0.3, ours))
        steady = [
            replace(m, times={n: replace(s, lower_quartile=0.99 * s.median, upper_quartile=1.01 * s.median)
                              for n, s in m.times.items()})
            for m in both.measurements
        ]  # fmt: skip
        run = {"commit": "", "versions": {}, "threads": 2, "selection": {}, "memory_copy_bandwidth": 4e10}
        cases = [to_json(replace(both, measurements=tuple(steady)))]
        return {"machine": machine, "operators": {"group_norm": {"run": run, "cases": cases}}, "unfinished": {}}

    for other, verdict in (({**MACHINE, "name": "Another"}, REGRESSION), (MACHINE, WITHIN)):
        rows = compare(file(MACHINE, 1.0), file(other, 1.15)).rows
        assert {row.verdict for row in rows if row.contender == "ours"} == {verdict}
