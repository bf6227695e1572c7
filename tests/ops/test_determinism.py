"""The same bits every time: from run to run, for any number of threads, with and without the pool of outputs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor

import fastdl
from tests.support import batch_norm, group_norm
from tests.support.backends import BACKENDS_UNDER_TEST
from tests.support.problems import Case, Operator, Problem, Tensors, make_problem, solve

CASES: list[tuple[Operator, Case]] = [
    (
        operator,
        make(f"deterministic_{shape}_{layout}", shape, *groups, layout=layout, grad_layout=layout, activation="silu"),
    )
    for operator, make, groups in (
        (group_norm.OPERATOR, group_norm.row, (4,)),
        (group_norm.OPERATOR, group_norm.row, (12,)),
        (batch_norm.OPERATOR, batch_norm.row, ()),
    )
    for shape in ((2, 12, 9, 11), (1, 12, 120, 130), (33, 12, 8, 8), (300, 12))
    for layout in ("contiguous", "channels_last")
    if len(shape) == 4 or layout == "contiguous"
]


@pytest.fixture
def restored_threads() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def assert_same_bits(ours: Tensors, expected: Tensors) -> None:
    for name, result in ours.items():
        assert torch.equal(result, expected[name]), name


def solver(operator: Operator, case: Case, backend: str) -> Callable[[], Tensors]:
    problem: Problem = make_problem(operator, case, torch.float32, BACKENDS_UNDER_TEST[backend].device())

    def run() -> Tensors:
        with fastdl.use_backend(backend):
            return solve(operator, operator.ours, case, problem)

    return run


@pytest.mark.parametrize("backend", BACKENDS_UNDER_TEST)
@pytest.mark.parametrize(("operator", "case"), CASES, ids=lambda value: value.name)
def test_repeated_runs_give_the_same_bits(operator: Operator, case: Case, backend: str) -> None:
    run = solver(operator, case, backend)
    expected = run()
    for _ in range(3):
        assert_same_bits(run(), expected)


@pytest.mark.usefixtures("restored_threads")
@pytest.mark.parametrize(("operator", "case"), CASES, ids=lambda value: value.name)
def test_the_number_of_threads_changes_no_bit(operator: Operator, case: Case) -> None:
    run = solver(operator, case, "cpu")
    torch.set_num_threads(1)
    expected = run()
    for threads in (2, 3, 7):
        torch.set_num_threads(threads)
        assert_same_bits(run(), expected)


@pytest.mark.parametrize(("operator", "case"), CASES[::3], ids=lambda value: value.name)
def test_calls_from_several_threads_do_not_disturb_each_other(operator: Operator, case: Case) -> None:
    run = solver(operator, case, "cpu")
    expected = run()
    with ThreadPoolExecutor(4) as threads:
        for result in [future.result() for future in [threads.submit(run) for _ in range(24)]]:
            assert_same_bits(result, expected)


def test_each_thread_may_work_on_something_else() -> None:
    runs = [solver(operator, case, "cpu") for operator, case in CASES]
    expected = [run() for run in runs]
    with ThreadPoolExecutor(4) as threads:
        futures = [(threads.submit(run), result) for run, result in zip(runs * 3, expected * 3, strict=True)]
        for future, result in futures:
            assert_same_bits(future.result(), result)


@pytest.mark.parametrize("position", [0, 1, 2])
def test_a_sample_does_not_depend_on_its_neighbours(position: int) -> None:
    """Group norm of a batch holds, bit for bit, the group norms of its samples, wherever they stand in it."""
    device = BACKENDS_UNDER_TEST["cpu"].device()
    x = torch.randn(3, 12, 9, 11, device=device)
    with fastdl.use_backend("cpu"):
        batch = fastdl.ops.group_norm(x, 4, activation="gelu")
        alone = fastdl.ops.group_norm(x[position : position + 1].clone(), 4, activation="gelu")
    assert torch.equal(batch[position], alone[0])


def test_layouts_agree() -> None:
    """The two layouts take different kernels: the same to a few units in the last place, not to the bit."""
    device = BACKENDS_UNDER_TEST["cpu"].device()
    x: Tensor = torch.randn(3, 12, 9, 11, device=device)
    with fastdl.use_backend("cpu"):
        one = fastdl.ops.group_norm(x, 4, activation="gelu")
        other = fastdl.ops.group_norm(x.contiguous(memory_format=torch.channels_last), 4, activation="gelu")
    torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)
