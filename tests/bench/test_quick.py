"""The comparison that `fastdl demo` shows."""

import pytest

import fastdl
from fastdl.bench.quick import compare_group_norm


def test_comparison_is_checked_and_timed():
    with fastdl.use_backend("reference"):
        found = compare_group_norm((2, 8, 6, 6), 4, repetitions=3)
    assert (found.shape, found.num_groups, found.backend) == ((2, 8, 6, 6), 4, "reference")
    assert found.repetitions == 3
    assert found.speedup == pytest.approx(found.seconds_eager / found.seconds_ours)
    assert 0 < found.error_ours < 1e-5
    assert 0 < found.error_eager < 1e-5


def test_repetitions_must_be_positive():
    with pytest.raises(ValueError, match="repetitions must be at least 1; got 0"):
        compare_group_norm(repetitions=0)
