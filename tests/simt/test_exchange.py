"""Shuffles, votes, named barriers and atomics, against what CUDA's manual says of them."""

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.simt.harness import HERE, ORDERS, VARIANTS, Case, InOut, Output, build, run

SOURCES = [HERE / "kernels" / name for name in ("exchange.cu", "matrices.cu", "copies.cu", "arithmetic.cu")]


def shuffled(values: NDArray[np.generic], by: int) -> list[NDArray[np.generic]]:
    """The five rows of the kernel for whole warps, and the same for the last part of one."""
    n = len(values)
    lane, warp = np.arange(n) % 32, np.arange(n) // 32 * 32
    xor, down, up = lane ^ by, lane + by, lane - by
    half = (lane & 16) | ((lane ^ (by & 15)) & 15)
    sources = [
        np.full(n, by),
        np.where(xor < 32, xor, lane),
        np.where(down < 32, down, lane),
        np.where(up >= 0, up, lane),
    ]
    return [values[warp + source] for source in (*sources, half)]


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_shuffles(variant: str, order: str) -> None:
    generator = np.random.default_rng(0)
    cases, truths = [], []
    for kind, dtype in (("float", np.float32), ("double", np.float64), ("long", np.int64)):
        for by in (0, 1, 5, 16, 31):
            values = (generator.normal(size=96) * 1e6).astype(dtype)
            out = Output((5, 96), dtype)
            cases.append(Case(f"shuffles_{kind}", {"in": values, "out": out}, {"by": by, "threads": 96}))
            truths.append(np.stack(shuffled(values, by)))
    for result, truth in zip(run(build(SOURCES, variant), cases, order, seed=1), truths, strict=True):
        result.check()
        np.testing.assert_array_equal(result.arrays["out"], truth)


def test_a_shuffle_beyond_the_end_of_a_partial_warp_is_reported() -> None:
    values, out = np.zeros(48, np.float32), Output((5, 48), np.float32)
    case = Case("shuffles_float", {"in": values, "out": out}, {"by": 16, "threads": 48})
    [result] = run(build(SOURCES, "plain"), [case])
    assert result.kind == "wrong mask"
    assert result.failure is not None
    assert "reads lane 16, which does not take part" in result.failure


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_votes(variant: str, order: str) -> None:
    values = np.random.default_rng(1).integers(-2, 3, size=64).astype(np.int32)
    [result] = run(build(SOURCES, variant), [Case("votes", {"in": values, "out": Output((7, 64), np.uint32)})], order)
    result.check()
    ballot, any_above, all_above, match, match_long, elected, odd = result.arrays["out"]
    for first in (0, 32):
        warp = values[first : first + 32]
        votes = sum(1 << i for i in range(32) if warp[i] > 0)
        assert set(ballot[first : first + 32]) == {votes}
        assert set(any_above[first : first + 32]) == {int((warp > 2).any())}
        assert set(all_above[first : first + 32]) == {int((warp > -3).all())}
        same = [sum(1 << j for j in range(32) if warp[j] == warp[i]) for i in range(32)]
        assert list(match[first : first + 32]) == same
        assert list(match_long[first : first + 32]) == same
        assert elected[first : first + 32].sum() == 1
        assert list(odd[first : first + 32]) == [0, votes & 0xAAAAAAAA] * 16


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_named_barriers(variant: str, order: str) -> None:
    values = np.random.default_rng(2).normal(size=64).astype(np.float32)
    case = Case("named_barriers", {"in": values, "out": Output((128,), np.float32)})
    [result] = run(build(SOURCES, variant), [case], order, seed=2)
    result.check()
    np.testing.assert_array_equal(result.arrays["out"][:64], 2 * values[::-1])
    np.testing.assert_array_equal(result.arrays["out"][64:], 2 * values + 2 * np.roll(values, -1))


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_atomics(variant: str, order: str) -> None:
    values = np.random.default_rng(3).integers(0, 2**20, size=192).astype(np.uint32)
    start = np.array([0, 0, 2**32 - 1, 0, 0, 0, 0, 0, 0], np.uint32)
    case = Case("atomics", {"in": values, "out": InOut(start)})
    [result] = run(build(SOURCES, variant), [case], order, seed=3)
    result.check()
    out = result.arrays["out"]
    assert list(out[:3]) == [values.sum(), values.max(), values.min()]
    assert list(out[3:5]) == [np.bitwise_or.reduce(values), np.bitwise_xor.reduce(values)]
    assert out[5] == 192 % 10
    assert int(out[6]) | int(out[7]) << 32 == int(values.sum(dtype=np.uint64)) << 20
    assert out[8] == values.sum()
