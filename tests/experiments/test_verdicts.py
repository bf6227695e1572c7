"""Verdicts against known answers: tests of SciPy and statsmodels, simulated arms with and without an effect, power."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

pytest.importorskip("statsmodels")

from statsmodels.stats.power import TTestPower
from statsmodels.stats.weightstats import ttost_paired

from fastdl.experiments.claims import Arm, Claim, Difference, Equivalence, Trend, arms_of, contrasts
from fastdl.experiments.statistics import Estimate, estimate
from fastdl.experiments.verdicts import judge, seeds_needed

TEXT = {"en": "a claim", "ko": "주장"}
A: Arm = ("a",)
B: Arm = ("b",)


def measured(**arms: list[float | None]) -> dict[Arm, dict[int, float | None]]:
    return {(name,): dict(enumerate(values)) for name, values in arms.items()}


def larger(margin: float = 0.0, name: str = "larger") -> Difference:
    return Difference(name, TEXT, A, B, margin)


# -- contrasts --------------------------------------------------------------------------------------------------------


def test_contrasts_are_of_pairs_that_are_complete() -> None:
    found = contrasts(larger(), {A: {0: 1.0, 1: 2.0, 2: None, 3: 5.0}, B: {0: 0.5, 1: 3.0, 2: 1.0, 4: 1.0}})
    assert found == {0: 0.5, 1: -1.0}
    assert contrasts(larger(), {}) == {}


def test_a_slope_is_the_least_squares_line() -> None:
    at, values = (1.0, 2.0, 4.0, 8.0), [0.7, 0.75, 0.74, 0.9]
    arms = tuple(("relu", int(depth)) for depth in at)
    results = {arm: {0: value} for arm, value in zip(arms, values, strict=True)}
    slope = np.polyfit(at, values, 1)[0]
    assert contrasts(Trend("up", TEXT, arms, at, True), results)[0] == pytest.approx(slope)
    assert contrasts(Trend("down", TEXT, arms, at, False), results)[0] == pytest.approx(-slope)
    assert arms_of(Trend("up", TEXT, arms, at, True)) == arms


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Equivalence("alike", TEXT, A, B, 0.0), "margin must be a finite number above 0"),
        (lambda: Difference("more", TEXT, A, B, math.nan), "margin must be a finite number"),
        (lambda: Trend("up", TEXT, (A, B), (1.0,), True), "must be as many"),
        (lambda: Trend("up", TEXT, (A, B), (1.0, 1.0), True), "two different numbers"),
    ],
)
def test_a_claim_that_says_nothing_is_refused(make: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()  # type: ignore[operator]


# -- the tests --------------------------------------------------------------------------------------------------------


def test_p_values_are_those_of_the_libraries() -> None:
    a, b = [0.81, 0.79, 0.83, 0.80, 0.82], [0.75, 0.78, 0.77, 0.73, 0.79]
    results = measured(a=a, b=b)
    (verdict,) = judge([larger()], results)
    assert verdict.p_value == pytest.approx(stats.ttest_rel(a, b).pvalue)
    (verdict,) = judge([larger(0.02)], results)
    one_sided = stats.ttest_1samp(np.subtract(a, b), 0.02, alternative="greater").pvalue
    assert verdict.p_value == pytest.approx(2 * one_sided)
    (verdict,) = judge([Equivalence("alike", TEXT, A, B, 0.1)], results)
    assert verdict.p_value == pytest.approx(2 * ttost_paired(np.array(a), np.array(b), -0.1, 0.1)[0])
    assert verdict.contrast == estimate(list(np.subtract(a, b)))


def test_each_way_of_ending() -> None:
    a, b = [0.80, 0.81, 0.79, 0.80], [0.70, 0.71, 0.70, 0.69]
    results = measured(a=a, b=b)
    claims: list[Claim] = [
        larger(),
        Difference("less", TEXT, B, A),
        larger(0.1, "by_a_tenth"),
        Equivalence("alike", TEXT, A, B, 0.05),
        Equivalence("roughly_alike", TEXT, A, B, 0.3),
    ]
    assert [verdict.outcome for verdict in judge(claims, results)] == [
        "supported", "contradicted", "undecided", "contradicted", "supported",
    ]  # fmt: skip


def test_trends() -> None:
    at = (1.0, 4.0, 8.0)
    arms = tuple(("sigmoid", int(depth)) for depth in at)
    generator = np.random.default_rng(0)
    results = {
        arm: {seed: 0.8 - 0.03 * depth + 0.01 * generator.standard_normal() for seed in range(4)}
        for arm, depth in zip(arms, at, strict=True)
    }
    falls, rises = judge([Trend("falls", TEXT, arms, at, False), Trend("rises", TEXT, arms, at, True)], results)
    assert (falls.outcome, rises.outcome) == ("supported", "contradicted")
    assert falls.contrast.mean == pytest.approx(0.03, abs=0.004)


@pytest.mark.parametrize(
    ("a", "b", "reason"),
    [
        ([], [], "0 complete seeds"),
        ([0.5], [0.1], "1 complete seed:"),
        ([0.5, None], [0.1, 0.2], "1 complete seed:"),
        ([0.5, 0.75], [0.25, 0.5], "no variation"),
    ],
)
def test_what_cannot_be_tested_is_undecided(a: list[float | None], b: list[float | None], reason: str) -> None:
    (verdict,) = judge([larger()], measured(a=a, b=b))
    assert verdict.outcome == "undecided"
    assert reason in verdict.reason
    assert verdict.p_value is None
    assert verdict.adjusted_p_value is None


def test_diverged_and_missing_seeds_are_named() -> None:
    (verdict,) = judge([larger()], {A: {0: 1.0, 1: 1.1, 2: None}, B: {0: 0.5, 1: 0.7, 2: 0.4, 5: 0.1}})
    assert verdict.missing == (2, 5)
    assert verdict.contrast.count == 2


def test_holm_is_the_textbooks() -> None:
    """Of p-values 0.01, 0.04, 0.03 those of Holm are 0.03, 0.06, 0.06; an untested claim takes no part."""
    claims, results = [], {}
    for index, wanted in enumerate((0.01, 0.04, 0.03)):
        # Contrasts m - s, m, m + s have t = m sqrt(3) / s.
        t = stats.t.isf(wanted / 2, 2)
        arms = ((f"a{index}",), (f"b{index}",))
        mean = t / math.sqrt(3)
        results[arms[0]] = dict(enumerate([mean - 1, mean, mean + 1]))
        results[arms[1]] = dict.fromkeys(range(3), 0.0)
        claims.append(Difference(str(index), TEXT, *arms))
    verdicts = judge([*claims, Difference("no_run", TEXT, ("x",), ("y",))], results)
    assert [v.p_value for v in verdicts[:3]] == pytest.approx([0.01, 0.04, 0.03])
    assert [v.adjusted_p_value for v in verdicts[:3]] == pytest.approx([0.03, 0.06, 0.06])
    assert [v.outcome for v in verdicts] == ["supported", "undecided", "undecided", "undecided"]


def test_effect_size_is_hedges() -> None:
    (verdict,) = judge([larger(0.5)], measured(a=[1.0, 2.0, 3.0, 4.0], b=[0.0] * 4))
    deviation = stats.tstd([1, 2, 3, 4])
    exact = math.gamma(1.5) / (math.sqrt(1.5) * math.gamma(1.0))  # Hedges' J for three degrees of freedom
    assert verdict.effect_size == pytest.approx(exact * 2.0 / deviation)


# -- how often they are wrong, and how often they find what is there --------------------------------------------------


@pytest.fixture(autouse=True)
def no_collection(monkeypatch: pytest.MonkeyPatch) -> None:
    """statsmodels collects garbage in every correction for multiple tests, a quarter of a second each."""
    monkeypatch.setattr("gc.collect", lambda *_: 0)


def outcomes(claims: list[Claim], shifts: tuple[float, ...], seeds: int, repeats: int = 600) -> np.ndarray:
    """How each claim ended in simulated experiments of arms 0, 1, ... with these means; a seed's luck is shared."""
    generator = np.random.default_rng(7)
    found = []
    for _ in range(repeats):
        luck = generator.standard_normal(seeds)
        results: dict[Arm, dict[int, float | None]] = {
            (index,): dict(enumerate(shift + luck + generator.standard_normal(seeds)))
            for index, shift in enumerate(shifts)
        }
        found.append([verdict.outcome for verdict in judge(claims, results)])
    return np.array(found)


def between(first: int, second: int, margin: float = 0.0) -> Difference:
    return Difference(f"{first}-{second}", TEXT, (first,), (second,), margin)


@pytest.mark.parametrize("seeds", [3, 5])
def test_false_verdicts_are_as_rare_as_promised(seeds: int) -> None:
    """No effect anywhere: five claims, of which one or more is decided in at most 5 % of all experiments."""
    claims: list[Claim] = [between(0, 1), between(1, 2), between(2, 3), between(3, 0), between(0, 2)]
    wrong = (outcomes(claims, (0.0,) * 4, seeds) != "undecided").any(1).mean()
    assert wrong <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / 600)
    assert wrong >= 0.005  # a test that never speaks would pass, too


def test_a_single_claim_errs_just_as_often() -> None:
    wrong = (outcomes([between(0, 1)], (0.0, 0.0), 4, 2000) != "undecided").mean()
    assert wrong == pytest.approx(0.05, abs=3 * math.sqrt(0.05 * 0.95 / 2000))


def test_differences_at_the_edge_of_equivalence_are_not_called_alike() -> None:
    claim = Equivalence("alike", TEXT, (0,), (1,), 1.5)
    found = outcomes([claim], (1.5, 0.0), 6, 1500)
    assert (found == "supported").mean() <= 0.025 + 3 * math.sqrt(0.025 * 0.975 / 1500)
    assert (outcomes([claim], (0.0, 0.0), 20) == "supported").mean() > 0.8
    assert (outcomes([claim], (5.0, 0.0), 6) == "contradicted").mean() > 0.9


def test_power_is_what_the_theory_says() -> None:
    """Differences have a deviation of sqrt(2), as each arm's own noise has 1."""
    shift, seeds = 2.0, 8
    expected = TTestPower().power(shift / math.sqrt(2), seeds, 0.05, alternative="two-sided")
    found = (outcomes([between(0, 1)], (shift, 0.0), seeds, 1500) == "supported").mean()
    assert found == pytest.approx(expected, abs=3 * math.sqrt(expected * (1 - expected) / 1500))


def test_the_seeds_that_a_claim_needs_decide_it_as_often_as_promised() -> None:
    contrast = Estimate(3, 1.2, math.sqrt(2), None)
    needed = seeds_needed(between(0, 1), contrast)
    assert needed is not None
    solved = TTestPower().solve_power(1.2 / math.sqrt(2), alpha=0.05, power=0.8, alternative="two-sided")
    assert needed == pytest.approx(solved, abs=1.0)
    found = (outcomes([between(0, 1)], (1.2, 0.0), needed, 800) == "supported").mean()
    assert 0.78 - 3 * math.sqrt(0.16 / 800) <= found <= 0.88
    alike = Equivalence("alike", TEXT, (0,), (1,), 1.0)
    needed = seeds_needed(alike, Estimate(3, 0.0, math.sqrt(2), None))
    assert needed is not None
    assert (outcomes([alike], (0.0, 0.0), needed) == "supported").mean() >= 0.75


@pytest.mark.parametrize(
    "contrast", [Estimate(1, 0.3, None, None), Estimate(3, 0.0, 1.0, None), Estimate(2, 1.0, 0.0, 0.0)]
)
def test_no_number_of_seeds_is_invented(contrast: Estimate) -> None:
    assert seeds_needed(between(0, 1), contrast) is None


def test_tiny_effects_need_more_seeds_than_anyone_has() -> None:
    assert seeds_needed(between(0, 1), Estimate(3, 1e-4, 1.0, None)) is None


def test_alpha_is_checked() -> None:
    with pytest.raises(ValueError, match="alpha must lie between 0 and 1; got 5"):
        judge([between(0, 1)], {}, alpha=5)


def test_large_effects_need_few_seeds() -> None:
    """Where scipy's noncentral t makes no number the power is 1: the search must not take that for too little."""
    for effect in (1.5, 3.0, 20.0, 300.0):
        needed = seeds_needed(between(0, 1), Estimate(5, effect, 1.0, None), alpha=0.01)
        expected = next(n for n in range(2, 60) if not TTestPower().power(effect, n, 0.005, alternative="larger") < 0.8)
        assert needed == expected
