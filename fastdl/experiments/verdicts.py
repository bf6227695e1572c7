"""Which claims the runs support, which they contradict, and which they leave open.

Each claim is tested both ways, by Student's t on the numbers that its seeds give (`fastdl.experiments.claims`): that it
holds, and that its opposite does. An equivalence is tested by two one-sided tests (Schuirmann 1987, "A comparison of
the two one-sided tests procedure and the power approach for assessing the equivalence of average bioavailability").
Twice the smaller of the two p-values is the claim's, and Holm's step-down procedure (1979, "A simple sequentially
rejective multiple test procedure") corrects it for the number of claims: the probability of one or more wrong verdicts
is at most `ALPHA`, whatever is true. A claim whose p-value stays above is undecided, never "nearly supported".
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from fastdl.experiments.claims import Claim, Difference, Equivalence, Measurements, arms_of, contrasts
from fastdl.experiments.statistics import Estimate, estimate

__all__ = ["ALPHA", "POWER", "Verdict", "judge", "seeds_needed"]

ALPHA = 0.05
POWER = 0.8
SUPPORTED, CONTRADICTED, UNDECIDED = "supported", "contradicted", "undecided"
MOST_SEEDS = 10_000


@dataclass(frozen=True)
class Verdict:
    """What became of a claim.

    Attributes:
        claim: as it was written down.
        outcome: ``supported``, ``contradicted`` or ``undecided``.
        contrast: mean and 95 % interval of the differences or slopes, the claim's direction positive in a trend.
        effect_size: Hedges' g of the contrasts beyond the margin that they are tested against, in their own deviations;
            None where there is none.
        p_value: of the claim by itself, two-sided; None where it could not be tested.
        adjusted_p_value: by Holm's procedure over all claims that were tested.
        level: at which the claim is tested in the worst case, with all others still open.
        missing: seeds that gave nothing for the claim, since a run of them diverged or is not there.
        reason: why a claim could not be tested; empty where it was.
    """

    claim: Claim
    outcome: str
    contrast: Estimate
    effect_size: float | None = None
    p_value: float | None = None
    adjusted_p_value: float | None = None
    level: float = ALPHA
    missing: tuple[int, ...] = ()
    reason: str = ""

    @property
    def seeds_needed(self) -> int | None:
        """How many seeds would decide the claim, if effect and deviation are what was measured: `seeds_needed`."""
        return seeds_needed(self.claim, self.contrast, self.level)


def judge(claims: Sequence[Claim], measured: Measurements, alpha: float = ALPHA) -> list[Verdict]:
    """The verdict on every claim, in their order; ``alpha`` bounds the probability of any wrong one among them."""
    if not 0 < alpha < 1:
        raise ValueError(f"alpha must lie between 0 and 1; got {alpha!r}")
    found = [contrasts(claim, measured) for claim in claims]
    reasons = [_untestable(list(values.values())) for values in found]
    tested = [index for index, reason in enumerate(reasons) if not reason]
    pairs = {index: _p_values(claims[index], list(found[index].values())) for index in tested}
    p_values = {index: min(1.0, 2 * min(pairs[index])) for index in tested}
    adjusted = dict(zip(tested, _holm([p_values[index] for index in tested]), strict=True))
    verdicts = []
    for index, (claim, by_seed) in enumerate(zip(claims, found, strict=True)):
        seeds = {seed for arm in arms_of(claim) for seed in measured.get(arm, {})}
        missing = tuple(sorted(seeds - by_seed.keys()))
        contrast = estimate(list(by_seed.values()))
        if index not in pairs:
            verdicts.append(Verdict(claim, UNDECIDED, contrast, missing=missing, reason=reasons[index]))
            continue
        holds, fails = pairs[index]
        outcome = UNDECIDED if adjusted[index] > alpha else SUPPORTED if holds < fails else CONTRADICTED
        verdicts.append(
            Verdict(
                claim, outcome, contrast, _effect_size(claim, contrast), p_values[index], adjusted[index],
                alpha / len(tested), missing,
            )
        )  # fmt: skip
    return verdicts


def seeds_needed(claim: Claim, contrast: Estimate, alpha: float = ALPHA) -> int | None:
    """How many seeds would support or contradict a claim with probability `POWER` at a two-sided level ``alpha``.

    ``contrast``: what is taken for true: its mean and deviation. Of an equivalence both one-sided tests must succeed,
    each with a probability of (1 + `POWER`) / 2, which bounds that of both from below.
    """
    if contrast.mean is None or contrast.deviation is None or contrast.deviation == 0:
        return None
    distance, power = abs(contrast.mean - _margin(claim)), POWER
    if isinstance(claim, Equivalence):
        distance = abs(claim.margin - abs(contrast.mean))
        power = (1 + POWER) / 2 if abs(contrast.mean) < claim.margin else POWER
    if distance == 0:
        return None
    from statsmodels.stats.power import TTestPower

    # At a level of alpha / 2 in the one direction that is there. The search needs a bracket; two seeds are the least.
    solver, effect = TTestPower(), distance / contrast.deviation

    def suffices(seeds: int) -> bool:
        found = float(solver.power(effect, seeds, alpha / 2, alternative="larger"))
        # Of a noncentral t far out in its tail scipy makes no number; there the power is 1.
        return math.isnan(found) or found >= power

    least, most = 1, 2
    while not suffices(most):
        if most >= MOST_SEEDS:
            return None
        least, most = most, min(2 * most, MOST_SEEDS)
    while most - least > 1:
        middle = (least + most) // 2
        if suffices(middle):
            most = middle
        else:
            least = middle
    return most


def _untestable(values: Sequence[float]) -> str:
    if len(values) < 2:
        return f"{len(values)} complete {'seed' if len(values) == 1 else 'seeds'}: two at least are needed"
    if max(values) == min(values):
        return "all seeds gave the same number: there is no variation to judge by"
    return ""


def _margin(claim: Claim) -> float:
    return claim.margin if isinstance(claim, Difference) else 0.0


def _p_values(claim: Claim, values: Sequence[float]) -> tuple[float, float]:
    """One-sided p-values: small in the first speaks for the claim, in the second against it."""
    found = estimate(values)
    assert found.mean is not None
    assert found.deviation is not None
    mean, error, freedom = found.mean, found.deviation / math.sqrt(found.count), found.count - 1

    def exceeds(bound: float) -> float:
        """Of the hypothesis that the mean is at most ``bound``."""
        return _students_distribution(freedom, (bound - mean) / error)

    def falls_below(bound: float) -> float:
        return _students_distribution(freedom, (mean - bound) / error)

    if isinstance(claim, Equivalence):
        inside = max(exceeds(-claim.margin), falls_below(claim.margin))
        outside = min(1.0, 2 * min(exceeds(claim.margin), falls_below(-claim.margin)))
        return inside, outside
    return exceeds(_margin(claim)), falls_below(_margin(claim))


def _students_distribution(freedom: int, t: float) -> float:
    from scipy.special import stdtr

    return float(stdtr(freedom, t))


def _effect_size(claim: Claim, contrast: Estimate) -> float | None:
    """Hedges' g (1981): the distance in deviations, less the bias of a small sample's deviation."""
    if contrast.mean is None or not contrast.deviation:
        return None
    freedom = contrast.count - 1
    bias = math.exp(math.lgamma(freedom / 2) - math.lgamma((freedom - 1) / 2)) * math.sqrt(2 / freedom) \
        if freedom > 1 else 1.0  # fmt: skip
    return bias * (contrast.mean - _margin(claim)) / contrast.deviation


def _holm(p_values: Sequence[float]) -> list[float]:
    if not p_values:
        return []
    from statsmodels.stats.multitest import multipletests

    return [float(value) for value in multipletests(list(p_values), method="holm")[1]]
