"""Taking turns, medians and quartiles, with a clock that the test winds."""

import gc
import itertools

import pytest

from fastdl.bench.timing import CpuTimer, Effort, interleave, spread


class FakeTimer:
    """Each contender costs what the test says; every turn is written down."""

    def __init__(self, costs):
        self.costs = costs
        self.turns = []

    def time(self, call, start, count):
        name = call(start)
        self.turns.append((name, start, count))
        cost = self.costs[name]
        return count * (cost(len(self.turns)) if callable(cost) else cost)


def contenders(*names):
    return {name: (lambda index, name=name: name) for name in names}


EFFORT = Effort(seconds=1.0, warm_up=0.0, batch=0.0, settle=0.0, least_rounds=4, most_rounds=50)


def test_every_contender_has_one_turn_in_every_round_behind_another_one_each_time():
    timer = FakeTimer({"a": 0.01, "b": 0.01, "c": 0.01})
    times = interleave(contenders("a", "b", "c"), timer, EFFORT)
    turns = [name for name, _, _ in timer.turns][6:]  # two warm-up calls each come first
    assert {name: times[name].rounds for name in times} == {"a": 34, "b": 34, "c": 34}
    rounds = [turns[i : i + 3] for i in range(0, len(turns), 3)]
    assert all(sorted(order) == ["a", "b", "c"] for order in rounds)
    pairs = {(first, second) for order in rounds for first, second in itertools.pairwise(order)}
    assert len(pairs) == 6
    before = len(timer.turns)
    interleave(contenders("a", "b", "c"), timer, EFFORT)
    assert [name for name, _, _ in timer.turns[before + 6 :]] == turns  # the same in every run


def test_inputs_go_round_across_contenders():
    timer = FakeTimer({"a": 1.0, "b": 1.0})
    interleave(contenders("a", "b"), timer, EFFORT)
    following = 0
    for _, start, count in timer.turns:
        assert start == following
        following = start + count


def test_rounds_end_when_the_seconds_are_spent():
    timer = FakeTimer({"a": 0.02, "b": 0.03})
    times = interleave(contenders("a", "b"), timer, EFFORT)
    assert times["a"].rounds == 20  # 20 rounds of 0.05 s


def test_rounds_are_bounded():
    timer = FakeTimer({"a": 1e-6})
    assert interleave(contenders("a"), timer, EFFORT)["a"].rounds == EFFORT.most_rounds


def test_short_calls_are_repeated_within_a_turn_and_told_a_call():
    timer = FakeTimer({"short": 1e-5, "long": 1e-2})
    effort = Effort(seconds=0.1, warm_up=0.0, batch=1e-3, least_rounds=3)
    times = interleave(contenders("short", "long"), timer, effort)
    assert times["short"].calls_per_round == 100
    assert times["long"].calls_per_round == 1
    assert times["short"].median == pytest.approx(1e-5)
    assert times["long"].median == pytest.approx(1e-2)


def test_a_turn_of_short_calls_begins_with_one_that_is_not_timed():
    def cost(turn):  # the first call behind another contender's finds nothing of its own in the caches
        return 3e-3 if timer.turns[-1][0] != timer.turns[-2][0] else 1e-3

    timer = FakeTimer({"short": cost, "long": 5e-2})
    timer.turns.append(("none", 0, 0))
    times = interleave(contenders("short", "long"), timer, Effort(0.5, warm_up=0.0, batch=0.0, settle=2e-2))
    assert times["short"].median == times["short"].upper_quartile == 1e-3
    names = [name for name, _, _ in timer.turns][5:]
    assert names.count("short") == 2 * times["short"].rounds
    assert names.count("long") == times["long"].rounds
    # An untimed call takes its time of the run's all the same.
    assert times["short"].rounds == pytest.approx(0.5 / (3e-3 + 1e-3 + 5e-2), abs=1)


def test_median_and_quartiles_ignore_an_outlier():
    found = spread([3.0, 1.0, 2.0, 100.0, 2.0])
    assert (found.lower_quartile, found.median, found.upper_quartile) == (2.0, 2.0, 3.0)
    assert found.relative == pytest.approx(0.5)
    assert spread([7.0]).median == 7.0


def test_collection_of_garbage_is_off_while_timing_and_on_again_after_an_error():
    seen = []

    def call(index):
        seen.append(gc.isenabled())
        if len(seen) == 5:
            raise KeyboardInterrupt
        return "a"

    with pytest.raises(KeyboardInterrupt):
        interleave({"a": call}, FakeTimer({"a": 1.0}), EFFORT)
    assert seen == [True, True, False, False, False]  # two calls of warming up come before
    assert gc.isenabled()


def test_cpu_timer_counts_calls_in_order():
    seen = []
    assert CpuTimer().time(seen.append, 5, 3) > 0
    assert seen == [5, 6, 7]
