"""Two results files beside each other: the statistics by known answers, and what the command says and returns."""

import json
import math
from dataclasses import replace

import pytest

from fastdl.bench import __main__ as command
from fastdl.bench import compare, comparison, results
from fastdl.bench.comparison import IMPROVEMENT, REGRESSION, WITHIN, Ratio, measured
from fastdl.bench.records import GRAPH
from fastdl.bench.timing import Spread
from tests.bench.samples import MACHINE, make_record, make_run

E = math.e


def spread(median, part=0.01, rounds=100):
    return Spread(median, median * (1 - part), median * (1 + part), rounds, 1)


def test_bounds_are_the_quartiles_where_there_are_many_rounds():
    bounds = measured(Spread(2.0, 1.0, 8.0, 100, 1))
    assert (bounds.value, bounds.low, bounds.high) == pytest.approx((2.0, 1.0, 8.0))


def test_bounds_are_three_standard_errors_of_the_median_where_there_are_few():
    # Four rounds: 3 * 1.2533 s / sqrt(4), with quartiles 0.6745 s away: 2.7872 of their distances.
    bounds = measured(Spread(1.0, 1 / E, E, 4, 1))
    assert math.log(bounds.high) == pytest.approx(2.7872, rel=1e-4)
    assert math.log(bounds.low) == pytest.approx(-2.7872, rel=1e-4)
    # From 32 rounds on the quartiles are further away than that.
    assert measured(Spread(1.0, 1 / E, E, 32, 1)).high == pytest.approx(E, rel=1e-12)
    assert measured(Spread(1.0, 1 / E, E, 31, 1)).high > 1.0005 * E


def test_factors_of_independent_times_add_in_squares():
    # A lower bound meets the other's upper bound: 3-4-5.
    ratio = Ratio(6.0, 6.0 * E**-3, 6.0 * E**6) / Ratio(2.0, 2.0 * E**-8, 2.0 * E**4)
    assert ratio.value == pytest.approx(3.0)
    assert ratio.low == pytest.approx(3.0 * E**-5)
    assert ratio.high == pytest.approx(3.0 * E**10)


@pytest.mark.parametrize(
    ("value", "low", "high", "verdict"),
    [
        (1.10, 1.05, 1.15, REGRESSION),
        (1.10, 0.99, 1.15, WITHIN),
        (1.015, 1.01, 1.02, WITHIN),  # certain, and too small to count
        (0.90, 0.85, 0.95, IMPROVEMENT),
        (0.90, 0.85, 1.01, WITHIN),
        (0.985, 0.98, 0.99, WITHIN),
    ],
)
def test_verdicts(value, low, high, verdict):
    assert Ratio(value, low, high).verdict == verdict


def test_noise_of_one_program_is_seldom_called_a_change():
    """Medians of seven normally distributed times, of one program with itself: at most one in thirty is a change."""
    import random
    import statistics

    chance = random.Random(0)

    def run():
        values = [chance.gauss(1.0, 0.05) for _ in range(7)]
        lower, median, upper = statistics.quantiles(values, n=4, method="inclusive")
        return measured(Spread(median, lower, upper, 7, 1))

    verdicts = [(run() / run()).verdict for _ in range(1000)]
    assert sum(verdict != WITHIN for verdict in verdicts) < 1000 / 30
    slower = [(Ratio(1.5, 1.5, 1.5) / (run() / run())).verdict for _ in range(100)]
    assert slower.count(REGRESSION) == 100


def write(path, times, machine=MACHINE, rejected=None, passes=("forward",), **run):
    """A file with one case whose contenders took so long: ``times`` by contender."""
    record = make_record()
    spreads = {name: t if isinstance(t, Spread) else spread(t) for name, t in times.items()}
    chosen = [m for m in record.measurements if m.pass_name in passes]
    measurements = tuple(replace(m, pool=pool, times=spreads) for m in chosen for pool in ("on", GRAPH))
    record = replace(record, rejected=rejected or {}, measurements=measurements)
    results.save(path, machine, make_run(**run), [record], finished=True)
    return path


@pytest.fixture
def files(tmp_path):
    return tmp_path / "old.json", tmp_path / "new.json"


def run(capsys, *arguments):
    status = command.main(["--compare", *map(str, arguments)])
    return status, capsys.readouterr()


def rows_of(printed, contender):
    return [line for line in printed.splitlines() if f" {contender} " in line and "2x64x8x8" in line]


def test_the_same_results_are_within_the_spread(files, capsys):
    old, new = (write(path, {"ours": 1.0, "eager": 2.0}) for path in files)
    status, printed = run(capsys, old, new)
    assert status == 0
    assert "different" not in printed.out
    assert "Same machine" in printed.out
    assert "fastdl: 0 regressions, 0 improvements, 2 within the spread; the others: 0 regressions" in printed.out


def test_a_regression_is_told_with_its_ratio_and_its_bounds(files, capsys):
    old = write(files[0], {"ours": 1.0, "eager": 2.0, "compile": 1.5})
    new = write(files[1], {"ours": 1.2, "eager": 2.0, "compile": 1.0})
    status, printed = run(capsys, old, new)
    assert status == 1
    (line, graph) = rows_of(printed.out, "ours")
    assert "1.00s" in line
    assert "1.20x" in line
    assert "1.18..1.22" in line  # 1.2 by a factor of 1.01 twice, as sqrt(2) of its logarithm
    assert line.endswith("REGRESSION")
    assert GRAPH in graph
    assert rows_of(printed.out, "compile")[0].endswith("faster")
    assert "fastdl: 2 regressions, 0 improvements" in printed.out
    assert run(capsys, new, old)[0] == 0


def test_others_that_become_slower_are_told_and_are_no_failure(files, capsys):
    old, new = write(files[0], {"ours": 1.0, "eager": 2.0}), write(files[1], {"ours": 1.0, "eager": 3.0})
    status, printed = run(capsys, old, new)
    assert status == 0
    assert rows_of(printed.out, "eager")[0].endswith("slower")
    assert "the others: 2 regressions" in printed.out


def test_a_wide_spread_hides_a_change(files, capsys):
    noisy = {"ours": spread(1.2, part=0.2), "eager": 2.0}
    old, new = write(files[0], {"ours": 1.0, "eager": 2.0}), write(files[1], noisy)
    assert run(capsys, old, new)[0] == 0


@pytest.mark.parametrize("change", ["machine", "bandwidth"])
def test_between_machines_the_ratios_to_eager_decide(files, capsys, change):
    """Everything takes twice as long there: no regression; ours three times as long while eager takes two: one."""
    there = {"machine": {**MACHINE, "name": "Another"}} if change == "machine" else {"memory_copy_bandwidth": 2e10}
    old = write(files[0], {"ours": 1.0, "eager": 2.0})
    status, printed = run(capsys, old, write(files[1], {"ours": 2.0, "eager": 4.0}, **there))
    assert status == 0
    assert ("'A Processor' and 'Another'" if change == "machine" else "40.0 and 20.0 GB/s") in printed.out
    assert "verdicts go by each contender's time over eager" in printed.out
    line = rows_of(printed.out, "ours")[0]
    assert "2.00x" in line
    assert "1.00x" in line
    status, printed = run(capsys, old, write(files[1], {"ours": 3.0, "eager": 4.0}, **there))
    assert status == 1
    assert rows_of(printed.out, "ours")[0].endswith("REGRESSION")
    assert not rows_of(printed.out, "eager")[0].endswith("slower")  # it is what the others are measured by


def test_a_bandwidth_that_differs_little_leaves_the_times_to_decide(files, capsys):
    old, new = write(files[0], {"ours": 1.0, "eager": 2.0}), files[1]
    write(new, {"ours": 2.0, "eager": 4.0}, memory_copy_bandwidth=4.3e10)
    assert run(capsys, old, new)[0] == 1


def test_versions_commit_and_selection_are_named(files, capsys):
    old = write(files[0], {"ours": 1.0, "eager": 2.0}, commit="a" * 40)
    new = write(files[1], {"ours": 1.0, "eager": 2.0}, commit="b" * 40 + "+changes",
                versions={"torch": "2.14.0", "python": "3.11.7"}, threads=4)  # fmt: skip
    printed = run(capsys, old, new)[1].out
    assert f"commit: {'a' * 12} and {'b' * 12}+changes (group_norm)" in printed
    assert "torch: 2.13.0 and 2.14.0 (group_norm)" in printed
    assert "threads: 2 and 4" in printed
    assert "python" not in printed


def test_what_is_in_one_file_only_is_listed(files, capsys):
    old = write(files[0], {"ours": 1.0, "eager": 2.0, "apex": 1.0}, passes=("forward", "forward+backward"))
    new = write(files[1], {"ours": 1.0, "eager": 2.0, "liger": 1.0})
    results.save(new, MACHINE, make_run("batch_norm"), [make_record()], finished=True)
    status, printed = run(capsys, old, new)
    assert status == 0
    assert "only in the old file: group_norm 2x64x8x8/32 nchw float32, forward+backward, on" in printed.out
    assert "only in the old file: group_norm 2x64x8x8/32 nchw float32, forward, on: apex" in printed.out
    assert "only in the new file: group_norm 2x64x8x8/32 nchw float32, forward, on: liger" in printed.out
    assert "only in the new file: batch_norm 2x64x8x8/32 nchw float32, forward, on" in printed.out


def test_ops_that_are_named_are_compared_alone(files, capsys):
    for path, ours in zip(files, (1.0, 2.0), strict=True):
        write(path, {"ours": ours, "eager": 2.0})
        results.save(path, MACHINE, make_run("batch_norm"), [make_record()], finished=True)
    assert command.main(["batch_norm", "--compare", *map(str, files)]) == 0
    assert command.main(["group_norm", "--compare", *map(str, files)]) == 1
    assert "batch_norm" not in capsys.readouterr().out.partition("group_norm")[2]


def test_ours_with_a_wrong_answer_is_a_failure(files, capsys):
    old = write(files[0], {"ours": 1.0, "eager": 2.0})
    new = write(files[1], {"eager": 2.0}, rejected={"ours": "wrong answer: the output is off"})
    status, printed = run(capsys, old, new)
    assert status == 1
    assert "broken: group_norm 2x64x8x8/32 nchw float32: ours is no longer timed: wrong answer" in printed.out


def test_training_steps_are_compared(files, capsys):
    for path, ours in zip(files, (1.0, 1.5), strict=True):
        write(path, {"ours": 1.0, "eager": 2.0})
        content = json.loads(path.read_text())
        times = {"ours": ours, "eager NHWC": 2.0}
        rows = {
            name: {
                "median": t, "lower_quartile": t * 0.99, "upper_quartile": t * 1.01, "rounds": 30, "calls_per_round": 1
            }
            for name, t in times.items()
        }  # fmt: skip
        content["training"] = {"resnet18": {"times": rows}}
        path.write_text(json.dumps(content))
    status, printed = run(capsys, *files)
    assert status == 1
    assert any(line.startswith("resnet18") and line.endswith("REGRESSION") for line in printed.out.splitlines())


def test_unfinished_runs_count_where_there_is_no_finished_one(files):
    old, new = files
    results.save(old, MACHINE, make_run(), [make_record(ours=1.0)], finished=False)
    results.save(new, MACHINE, make_run(), [make_record(ours=2.0)], finished=True)
    found = comparison.compare(results.read(old), results.read(new))
    assert {row.contender for row in found.rows} == {"ours", "eager"}
    assert found.means()[("group_norm", "forward", "ours")] == (1, pytest.approx(2.0), pytest.approx(2.0))


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        (None, "is not there"),
        ("{torn", "is not a results file"),
        ('{"format": 99}', "found 99"),
        ('{"format": 1}', "holds no results"),
        ('{"format": 1, "operators": {"x": {"run": {}, "cases": [{}]}}}', "unknown form"),
    ],
)
def test_a_file_of_no_use_is_status_2(files, capsys, text, complaint):
    old, new = write(files[0], {"ours": 1.0, "eager": 2.0}), files[1]
    if text is not None:
        new.write_text(text)
    for pair in ((old, new), (new, old)):
        status, printed = run(capsys, *pair)
        assert status == 2
        assert complaint in printed.err


def test_nothing_in_common_is_status_2(files, capsys):
    write(files[0], {"ours": 1.0, "eager": 2.0})
    results.save(files[1], MACHINE, make_run("batch_norm"), [make_record()], finished=True)
    status, printed = run(capsys, *files)
    assert status == 2
    assert "no case in common" in printed.err


def test_bounds_without_eager_are_told_as_absent():
    assert compare.bounds(None) == "-"
