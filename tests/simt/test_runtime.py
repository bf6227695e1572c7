"""What the runner and the harness promise, apart from what kernels compute."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.simt.harness import HERE, ORDERS, VARIANTS, Case, InOut, Input, Machine, Output, SimtError, build, run

SOURCES = [HERE / "kernels" / "behaviour.cu"]


def arrivals(order: str, seed: int = 0) -> list[int]:
    case = Case("arrivals", {"out": Output((3, 3, 32), np.int32)})
    [result] = run(build(SOURCES, "plain"), [case], order, seed)
    result.check()
    return [int(place) for place in result.arrays["out"].ravel()]


def test_threads_run_in_the_order_that_is_asked_for() -> None:
    assert arrivals("forward") == list(range(288))
    assert arrivals("reversed") == list(reversed(range(288)))
    first, second = arrivals("random", 1), arrivals("random", 2)
    assert sorted(first) == list(range(288))
    assert len({tuple(each) for each in (first, second, arrivals("forward"), arrivals("reversed"))}) == 4
    assert arrivals("random", 1) == first
    # A warp runs until it waits, in every order.
    for warp in np.array(first).reshape(9, 32):
        assert warp.max() - warp.min() == 31


def test_an_order_that_is_none_is_refused() -> None:
    with pytest.raises(ValueError, match="sideways"):
        run(build(SOURCES, "plain"), [], "sideways")


def test_a_kernel_without_end_is_ended() -> None:
    case = Case("endless", {"flag": np.zeros(1, np.int32)}, seconds=1)
    [result] = run(build(SOURCES, "plain"), [case])
    assert result.kind == "timeout"


@pytest.mark.parametrize("variant", VARIANTS)
def test_one_byte_beside_an_array_is_seen_by_every_build(variant: str) -> None:
    at = (-1, 0, 99, 100, 163, 4096, 1 << 20)
    cases = [Case("stray", {"out": InOut(np.zeros(100, np.uint8))}, {"at": i}) for i in at]
    kinds = [result.kind for result in run(build(SOURCES, variant), cases)]
    found = {"address", "out of bounds"}
    assert kinds[1:3] == [None, None]
    assert set(kinds[:1] + kinds[3:]) <= found


def test_a_failure_ends_its_own_case_alone() -> None:
    fine, wrong = (Case("stray", {"out": InOut(np.zeros(4, np.uint8))}, {"at": i}) for i in (3, 4))
    results = run(build(SOURCES, "plain"), [wrong, fine, wrong, fine])
    assert [result.kind for result in results] == ["out of bounds", None] * 2
    assert list(results[1].arrays["out"]) == [0, 0, 0, 7]
    with pytest.raises(SimtError, match="past the end of array 'out'"):
        results[0].check()


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_block_finds_nan_in_shared_memory(variant: str, order: str) -> None:
    [result] = run(build(SOURCES, variant), [Case("values", {"out": Output((3,), np.float32)})], order)
    # The blocks write the same elements one after the other, which the race detector must say.
    if variant == "race":
        assert result.kind == "race"
    else:
        result.check()
        assert np.isnan(result.arrays["out"]).all()


def test_too_much_static_shared_memory_is_reported() -> None:
    [result] = run(build(SOURCES, "plain"), [Case("large", {"out": Output((32,), np.float32)})])
    assert result.kind == "too much shared memory"


def test_indices_count_as_in_cuda() -> None:
    [result] = run(build(SOURCES, "plain"), [Case("indices", {"out": Output((2, 3, 2, 4, 3, 2), np.uint32)})])
    result.check()
    bz, by, bx, tz, ty, tx = np.indices((2, 3, 2, 4, 3, 2))
    truth = tx + 10 * ty + 100 * tz + 1000 * bx + 10000 * by + 100000 * bz
    np.testing.assert_array_equal(result.arrays["out"], truth)


@pytest.mark.parametrize(
    ("change", "fine"),
    [
        ({}, True),
        ({"x": 0}, False),
        ({"y": 65536}, False),
        ({"threads": 0}, False),
        ({"threads": 1025}, False),
        ({"shared": 227 * 1024}, True),
        ({"shared": 227 * 1024 + 1}, False),
    ],
)
def test_launches_that_a_gpu_refuses_are_refused(change: dict[str, int], fine: bool) -> None:
    scalars = {"x": 1, "y": 1, "threads": 1, "shared": 16, **change}
    [result] = run(build(SOURCES, "plain"), [Case("launch_of", {"out": Output((3,), np.float32)}, scalars)])
    result.check()
    assert (result.reports["status"] == 0) == fine
    assert result.kernels == (["behaviour::values"] if fine else [])


def test_drivers_are_told_what_the_test_gives() -> None:
    given = Input(np.zeros(7, np.float16), offset=6)
    machine = Machine(multiprocessors=132, shared_bytes=1000, capability=80)
    case = Case("facts", {"given": given, "none": None}, {"half": 0.5}, machine)
    [result] = run(build(SOURCES, "plain"), [case])
    result.check()
    assert result.reports == {
        "multiprocessors": 132,
        "shared_bytes": 1000,
        "capability": 80,
        "bytes": 14,
        "offset": 6,
        "absent": 1,
        "half": 1,
    }


def test_names_that_nobody_knows_are_reported() -> None:
    results = run(build(SOURCES, "plain"), [Case("asks_for_too_much"), Case("nobody")])
    assert [result.kind for result in results] == ["no such array", "no such case"]


def test_a_source_that_does_not_compile_shows_the_compilers_words(tmp_path: Path) -> None:
    source = tmp_path / "broken.cu"
    source.write_text("int broken = ;\n")
    with pytest.raises(SimtError, match=r"broken\.cu:1"):
        build([source], "plain")


def test_two_processes_build_the_same_at_once(tmp_path: Path) -> None:
    source = tmp_path / "driver.cpp"
    source.write_text('#include "simt/case.h"\nSIMT_CASE(nothing) {}\n')
    script = (
        "import sys; from pathlib import Path; from tests.simt.harness import *\n"
        "[result] = run(build([Path(sys.argv[1])], 'plain'), [Case('nothing')]); result.check()"
    )
    command = [sys.executable, "-c", script, str(source)]
    processes = [subprocess.Popen(command, cwd=HERE.parent.parent) for _ in range(2)]
    assert [process.wait(timeout=120) for process in processes] == [0, 0]
