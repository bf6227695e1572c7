"""Estimates over seeds against SciPy's and against tables."""

from __future__ import annotations

import pytest
from scipy import stats

from fastdl.experiments.markdown_tables import markdown_table
from fastdl.experiments.statistics import Estimate, estimate


@pytest.mark.parametrize("values", [[0.9, 0.92], [0.5, 0.7, 0.65], [0.1 * index**0.5 for index in range(30)]])
def test_the_interval_is_students(values: list[float]) -> None:
    found = estimate(values)
    low, high = stats.t.interval(0.95, len(values) - 1, loc=sum(values) / len(values), scale=stats.sem(values))
    assert found.count == len(values)
    assert found.mean == pytest.approx((low + high) / 2)
    assert found.half_width == pytest.approx((high - low) / 2)
    assert found.deviation == pytest.approx(stats.tstd(values))


def test_the_quantile_for_two_values_is_that_of_the_tables() -> None:
    """t(0.975, 1) = 12.706; the deviation of 0 and 2 is sqrt(2), their standard error 1."""
    assert estimate([0.0, 2.0]).half_width == pytest.approx(12.706, abs=5e-4)


def test_one_value_has_no_uncertainty_to_state() -> None:
    assert estimate([0.25]) == Estimate(1, 0.25, None, None)
    assert estimate([]) == Estimate(0, None, None, None)


def test_a_table_is_aligned() -> None:
    assert markdown_table(["a", "long"], [["1", "2"], ["333", "4"]]) == (
        "| a   | long |\n|-----|------|\n| 1   | 2    |\n| 333 | 4    |"
    )
