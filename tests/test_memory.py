"""The pool of CPU outputs: switched, bounded and cleared while tensors live, over threads and forks."""

from __future__ import annotations

import gc
import io
import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

import fastdl
from fastdl.memory import parse_size
from fastdl.ops import group_norm
from tests.support.backends import BACKENDS_UNDER_TEST

MIB = 1 << 20
SHAPE = (1, 4, 1024, 256)  # 4 MiB in float32


@pytest.fixture(autouse=True)
def fresh_pool(request: pytest.FixtureRequest) -> Iterator[None]:
    if "size" in request.fixturenames or "mode" in request.fixturenames:  # texts alone: a collection takes a second
        yield
        return
    BACKENDS_UNDER_TEST["cpu"].device()
    gc.collect()
    start = fastdl.cpu_pool("on", clear=True)
    yield
    gc.collect()
    fastdl.cpu_pool("on", limit=start.limit, clear=True)


def output(scale: float = 1.0, shape: tuple[int, ...] = SHAPE) -> torch.Tensor:
    with fastdl.use_backend("cpu"):
        return group_norm(torch.randn(shape) * scale, 2)


def test_it_is_on_by_default_and_bounded() -> None:
    result = run_python(
        "import fastdl; s = fastdl.cpu_pool(); print(s.enabled, s.limit, s.cached, s.in_use, s.hits, s.misses)"
    )
    enabled, limit, *rest = result.stdout.split()
    assert enabled == "True", result.stderr
    assert 16 * MIB < int(limit) <= os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 8
    assert rest == ["0", "0", "0", "0"]


def test_a_large_output_comes_from_it_and_returns_to_it() -> None:
    before = fastdl.cpu_pool()
    y = output()
    living = fastdl.cpu_pool()
    assert living.in_use - before.in_use >= y.numel() * 4
    assert living.misses == before.misses + 1
    del y
    after = fastdl.cpu_pool()
    assert after.in_use == before.in_use
    assert after.cached >= 4 * MIB
    address = output().data_ptr()
    assert fastdl.cpu_pool().hits == after.hits + 1
    assert output().data_ptr() == address  # the very block, again


def test_the_block_given_back_last_is_given_out_first() -> None:
    """It is the one that is still in a cache; sizes within an eighth share blocks."""
    before = fastdl.cpu_pool().misses
    tensors = [output() for _ in range(4)]
    places = [tensor.data_ptr() for tensor in tensors]
    for i in (2, 0, 3, 1):
        tensors[i] = torch.empty(0)
    again = [output(), output(shape=(1, 4, 1024, 255)), output()]
    assert [tensor.data_ptr() for tensor in again] == [places[i] for i in (1, 3, 0)]
    assert fastdl.cpu_pool().misses == before + 4


def test_small_outputs_do_not_come_from_it() -> None:
    before = fastdl.cpu_pool()
    y = output(shape=(1, 4, 16, 16))
    assert fastdl.cpu_pool().in_use == before.in_use
    assert fastdl.cpu_pool().misses == before.misses
    assert y.isfinite().all()


def test_blocks_of_living_tensors_are_not_given_out_again() -> None:
    tensors = [output(shape=(1, 4, 1024, 256 + 8 * i)) for i in range(4)]
    copies = [t.clone() for t in tensors]
    for _ in range(3):
        tensors.append(output())
        copies.append(tensors[-1].clone())
    addresses = [t.data_ptr() for t in tensors]
    assert len(set(addresses)) == len(addresses)
    for tensor, copy in zip(tensors, copies, strict=True):
        assert torch.equal(tensor, copy)


def test_views_keep_the_block() -> None:
    before = fastdl.cpu_pool().in_use
    view = output()[0, 1, 5:7]
    copy = view.clone()
    gc.collect()
    assert fastdl.cpu_pool().in_use > before
    output(), output()
    assert torch.equal(view, copy)
    del view
    assert fastdl.cpu_pool().in_use == before


def test_switched_off_it_keeps_nothing_and_gives_nothing() -> None:
    y = output()
    copy = y.clone()
    status = fastdl.cpu_pool("off")
    assert not status.enabled
    assert status.cached == 0
    counted = (status.hits, status.misses)
    z = output(2.0)
    status = fastdl.cpu_pool()
    assert (status.hits, status.misses) == counted
    assert torch.equal(y, copy)  # made before, and alive
    del y
    assert fastdl.cpu_pool().cached == 0
    assert z.isfinite().all()
    assert fastdl.cpu_pool("on").enabled
    del z
    assert fastdl.cpu_pool().cached == 0  # it was no block of the pool's


def test_a_tensor_made_while_on_may_die_while_off_and_the_other_way_round() -> None:
    on = output()
    fastdl.cpu_pool("off")
    off = output()
    del on
    fastdl.cpu_pool("on")
    del off
    assert fastdl.cpu_pool().in_use == 0
    assert output().isfinite().all()


def test_clear_gives_back_what_no_tensor_uses() -> None:
    kept = output()
    copy = kept.clone()
    output()
    assert fastdl.cpu_pool().cached >= 4 * MIB
    status = fastdl.cpu_pool(clear=True)
    assert status.cached == 0
    assert status.in_use >= 4 * MIB
    assert torch.equal(kept, copy)


def test_the_limit_holds_at_once_and_later() -> None:
    del (tensors := [output() for _ in range(4)])[:]
    del tensors
    assert fastdl.cpu_pool().cached >= 16 * MIB
    status = fastdl.cpu_pool(limit="6MiB")
    assert status.limit == 6 * MIB
    assert status.cached <= 6 * MIB
    tensors = [output() for _ in range(4)]
    del tensors
    assert 4 * MIB <= fastdl.cpu_pool().cached <= 6 * MIB
    assert fastdl.cpu_pool(limit=0).cached == 0
    output()
    assert fastdl.cpu_pool().cached == 0


def test_what_is_not_named_stays() -> None:
    fastdl.cpu_pool("on", limit="64MiB")
    assert fastdl.cpu_pool("off").limit == 64 * MIB
    assert not fastdl.cpu_pool(limit="32MiB").enabled
    assert not fastdl.cpu_pool(clear=True).enabled
    status = fastdl.cpu_pool("on")
    assert (status.enabled, status.limit) == (True, 32 * MIB)


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        (0, 0), (4096, 4096), ("0", 0), ("17", 17), ("17B", 17), ("2KB", 2000), ("2KiB", 2048), ("3MB", 3_000_000),
        ("3 MiB", 3 * MIB),         ("1.5GiB", 3 * 2**29), ("2gb", 2_000_000_000), (" 512mib ", 512 * MIB),
    ],
)  # fmt: skip
def test_sizes_are_read(size: int | str, expected: int) -> None:
    assert parse_size(size) == expected


@pytest.mark.parametrize("size", ["", "lots", "-1", -1, "1.2.3MB", "5TB", "MiB", 1.5, True, None, "1e9", b"5"])
def test_what_is_no_size_is_refused(size: object) -> None:
    with pytest.raises(ValueError, match="cpu_pool: limit must be bytes, or a size such as '512MiB' or '2GB'; got"):
        parse_size(size)  # type: ignore[arg-type]


@pytest.mark.parametrize("mode", ["", "ON", "auto", True, 1])
def test_an_unknown_mode_is_refused_and_changes_nothing(mode: object) -> None:
    before = fastdl.cpu_pool()
    with pytest.raises(ValueError, match="cpu_pool: mode must be 'on', 'off' or None; got"):
        fastdl.cpu_pool(mode, limit="1MiB")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="limit"):
        fastdl.cpu_pool("off", limit="much")
    assert fastdl.cpu_pool() == before


def test_training_returns_every_block() -> None:
    before = fastdl.cpu_pool()
    x = torch.randn(SHAPE, requires_grad=True)
    with fastdl.use_backend("cpu"):
        for _ in range(5):
            group_norm(group_norm(x, 2, activation="silu"), 4, activation="relu").square().mean().backward()
            x.grad = None
    gc.collect()
    status = fastdl.cpu_pool()
    assert status.in_use == before.in_use
    assert status.hits - before.hits > status.misses - before.misses


def test_results_are_right_whatever_the_block_held_before() -> None:
    output(1e30)
    with torch.no_grad():
        y = output()
        y.fill_(float("nan"))
    del y
    x = torch.randn(SHAPE)
    with fastdl.use_backend("cpu"):
        ours = group_norm(x, 2)
    torch.testing.assert_close(ours, torch.nn.functional.group_norm(x, 2), rtol=1e-4, atol=1e-5)


def test_tensors_go_on_living_in_other_forms() -> None:
    y = output()
    expected = y.clone()
    array = y.numpy()
    saved = io.BytesIO()
    torch.save(y, saved)
    shared = y.clone().share_memory_()
    moved = output().share_memory_()  # takes the tensor out of its block
    moved_copy = moved.clone()
    del y
    gc.collect()
    for _ in range(3):
        output()
    assert torch.equal(torch.from_numpy(array), expected)
    saved.seek(0)
    assert torch.equal(torch.load(saved, weights_only=True), expected)
    assert torch.equal(shared, expected)
    assert torch.equal(moved, moved_copy)


def test_in_place_and_resizing_work_on_a_pooled_tensor() -> None:
    y = output()
    y.mul_(2).add_(1)
    assert y.isfinite().all()
    y = y.transpose(1, 2).contiguous()
    z = output()
    with torch.no_grad():
        z.set_(torch.zeros(3))  # type: ignore[call-overload]
    gc.collect()
    assert fastdl.cpu_pool().in_use == 0
    assert y.isfinite().all()


def test_threads_share_it() -> None:
    x = [torch.randn(1, 4, 1024, 256 + 16 * i) for i in range(4)]
    with fastdl.use_backend("cpu"):
        expected = [group_norm(t, 2, activation="silu").clone() for t in x]

    def work(seed: int) -> bool:
        with fastdl.use_backend("cpu"):
            return all(
                torch.equal(group_norm(x[(seed + i) % 4], 2, activation="silu"), expected[(seed + i) % 4])
                for i in range(12)
            )

    with ThreadPoolExecutor(4) as threads:
        futures = [threads.submit(work, seed) for seed in range(8)]
        for _ in range(10):
            fastdl.cpu_pool(clear=True)
        assert all(future.result() for future in futures)
    gc.collect()
    assert fastdl.cpu_pool().in_use == 0


def test_a_tensor_may_die_on_another_thread() -> None:
    before = fastdl.cpu_pool().in_use
    tensors = [output()]
    with ThreadPoolExecutor(1) as threads:
        threads.submit(tensors.clear).result()
    assert fastdl.cpu_pool().in_use == before


def run_python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )


PROGRAM = """
import os, sys, torch, fastdl
x = torch.randn(1, 4, 1024, 256)
expected = torch.nn.functional.group_norm(x, 2)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_child_computes_and_starts_empty() -> None:
    code = (
        PROGRAM
        + """
y = fastdl.ops.group_norm(x, 2)
fastdl.ops.group_norm(x, 2)
parent = fastdl.cpu_pool()
assert parent.in_use and parent.cached, parent
copy = y.clone()
child = os.fork()
if child == 0:
    try:
        torch.set_num_threads(1)
        status = fastdl.cpu_pool()
        assert status.cached == 0, status
        z = fastdl.ops.group_norm(x, 2)
        assert torch.allclose(z, expected, atol=1e-5)
        assert torch.equal(y, copy)  # the parent's tensor, seen through the fork
        del y, z
        fastdl.ops.group_norm(x, 2)
        assert fastdl.cpu_pool(clear=True).cached == 0
    except BaseException as error:
        print(repr(error), file=sys.stderr)
        os._exit(1)
    os._exit(0)
_, status = os.waitpid(child, 0)
assert os.waitstatus_to_exitcode(status) == 0, status
assert torch.equal(y, copy)
assert fastdl.cpu_pool() == parent
print("right")
"""
    )
    result = run_python(code, OMP_NUM_THREADS="1")
    assert result.stdout.split() == ["right"], result.stderr


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_fork_while_other_threads_allocate() -> None:
    code = (
        PROGRAM
        + """
import threading
torch.set_num_threads(1)
stop = threading.Event()
def work():
    while not stop.is_set():
        fastdl.ops.group_norm(x, 2)
threads = [threading.Thread(target=work) for _ in range(3)]
for thread in threads: thread.start()
for _ in range(20):
    child = os.fork()
    if child == 0:
        ok = torch.allclose(fastdl.ops.group_norm(x, 2), expected, atol=1e-5)
        os._exit(0 if ok else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
stop.set()
for thread in threads: thread.join()
print("right")
"""
    )
    # Forking with threads is what this is about, whatever newer Pythons say of it.
    result = run_python("import warnings; warnings.simplefilter('ignore', DeprecationWarning)\n" + code)
    assert result.stdout.split() == ["right"], result.stderr


@pytest.mark.parametrize(
    ("value", "expected"),
    [("off", "False None"), ("64MiB", "True 67108864")],
)
def test_the_environment_sets_the_start(value: str, expected: str) -> None:
    result = run_python("import fastdl; s = fastdl.cpu_pool(); print(s.enabled, s.limit)", FASTDL_CPU_POOL=value)
    enabled, limit = result.stdout.split()
    wanted_enabled, wanted_limit = expected.split()
    assert wanted_enabled in ("None", enabled), result.stderr
    assert wanted_limit in ("None", limit), result.stderr


def test_a_wrong_environment_is_told_at_import() -> None:
    result = run_python("import fastdl", FASTDL_CPU_POOL="plenty")
    assert result.returncode != 0
    assert "FASTDL_CPU_POOL must be 'on', 'off' or a size such as '512MiB'; got 'plenty'" in result.stderr


def test_the_process_ends_well_with_tensors_alive() -> None:
    code = (
        PROGRAM
        + """
import atexit
keep = [fastdl.ops.group_norm(x, 2) for _ in range(3)]
sys.modules["builtins"].kept_to_the_end = keep
atexit.register(lambda: print(float(keep[0].abs().sum()) > 0))
"""
    )
    result = run_python(code)
    assert (result.returncode, result.stdout.split()) == (0, ["True"]), result.stderr


def test_data_loader_workers_may_use_it() -> None:
    """The usual reason to fork: workers that transform with the package's ops and hand tensors back."""
    dataset = Transformed()
    loader = torch.utils.data.DataLoader(dataset, batch_size=None, num_workers=2)
    results = list(loader)
    for index, result in enumerate(results):
        torch.testing.assert_close(result, dataset[index])


class Transformed(torch.utils.data.Dataset):  # type: ignore[type-arg]
    def __len__(self) -> int:
        return 6

    def __getitem__(self, index: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(index)
        return group_norm(torch.randn(SHAPE, generator=generator), 2, activation="silu")
