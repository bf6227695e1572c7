"""The choice of a backend: what is there, who asks, in which thread and task; a backward keeps to its forward."""

from __future__ import annotations

import asyncio
import contextvars
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

import fastdl
from fastdl.native.status import NativeUnavailableError
from fastdl.native.toolchain import find_compiler
from fastdl.ops import OPERATORS, dispatch, group_norm
from tests.support.backends import BACKENDS_UNDER_TEST
from tests.support.measure import count_operators

X = torch.randn(2, 6, 4, 4)


@pytest.fixture(autouse=True)
def automatic_choice() -> Iterator[None]:
    fastdl.set_backend("auto")
    yield
    fastdl.set_backend("auto")


def runs_on_the_kernel() -> bool:
    """Whether a call made here and now reaches the native op."""
    return any(name.startswith("fastdl_cpu::") for name in count_operators(lambda: group_norm(X, 3)))


def need_the_kernel() -> None:
    BACKENDS_UNDER_TEST["cpu"].device()


def test_the_cpu_backend_is_available_wherever_there_is_a_compiler() -> None:
    """So that a build that breaks never turns the suite into tests of the reference alone."""
    try:
        compiler = find_compiler()
    except NativeUnavailableError:
        pytest.skip("no compiler here")
    if os.environ.get("FASTDL_BUILD", "").strip().lower() in ("0", "never"):
        pytest.skip("FASTDL_BUILD forbids building")
    status = fastdl.backends()["cpu"]
    assert status.available, f"{compiler.path} is here, but: {status.reason}"


def test_every_backend_is_told_with_its_reason() -> None:
    backends = fastdl.backends()
    assert list(backends) == ["reference", "cpu", "triton", "cuda"]
    assert set(BACKENDS_UNDER_TEST) == set(backends)
    assert backends["reference"].available
    for name, status in backends.items():
        assert bool(status) == status.available
        assert status.available or len(status.reason) > 20, name


@pytest.mark.parametrize("name", ["", "CPU", "native", "torch", None, 1])
@pytest.mark.parametrize("choose", [fastdl.set_backend, lambda name: fastdl.use_backend(name).__enter__()])
def test_an_unknown_backend_is_refused_at_once(choose, name: object) -> None:
    with pytest.raises(ValueError, match="backend must be one of auto, reference, cpu, triton, cuda; got"):
        choose(name)
    assert dispatch.requested() == "auto"


def test_blocks_nest_and_end_with_exceptions() -> None:
    assert dispatch.requested() == "auto"
    with fastdl.use_backend("reference"):
        assert dispatch.requested() == "reference"
        with fastdl.use_backend("cpu"):
            assert dispatch.requested() == "cpu"
        assert dispatch.requested() == "reference"
        with pytest.raises(KeyError), fastdl.use_backend("cpu"):
            raise KeyError
        assert dispatch.requested() == "reference"
        with fastdl.use_backend("auto"):
            assert dispatch.requested() == "auto"
    assert dispatch.requested() == "auto"


def test_set_backend_holds_everywhere_and_a_block_stands_above_it() -> None:
    fastdl.set_backend("reference")
    assert dispatch.requested() == "reference"
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(dispatch.requested).result() == "reference"
    with fastdl.use_backend("cpu"):
        fastdl.set_backend("auto")
        assert dispatch.requested() == "cpu"
    assert dispatch.requested() == "auto"


def test_the_request_decides_what_runs() -> None:
    need_the_kernel()
    assert runs_on_the_kernel()
    with fastdl.use_backend("reference"):
        assert not runs_on_the_kernel()
    fastdl.set_backend("reference")
    assert not runs_on_the_kernel()
    with fastdl.use_backend("cpu"):
        assert runs_on_the_kernel()


def test_a_block_in_one_thread_is_not_seen_in_another() -> None:
    inside, leave = threading.Event(), threading.Event()
    seen: list[str] = []

    def work() -> None:
        with fastdl.use_backend("reference"):
            inside.set()
            leave.wait(10)
            seen.append(dispatch.requested())

    thread = threading.Thread(target=work)
    thread.start()
    assert inside.wait(10)
    with fastdl.use_backend("cpu"):
        assert dispatch.requested() == "cpu"
        leave.set()
        thread.join()
        assert dispatch.requested() == "cpu"
    assert seen == ["reference"]
    assert dispatch.requested() == "auto"


def test_tasks_of_one_event_loop_do_not_see_each_other() -> None:
    async def work(name: str, order: list[tuple[str, str]]) -> None:
        with fastdl.use_backend(name):
            for _ in range(3):
                await asyncio.sleep(0)
                order.append((name, dispatch.requested()))

    async def main() -> list[tuple[str, str]]:
        order: list[tuple[str, str]] = []
        await asyncio.gather(*(work(name, order) for name in ("reference", "cpu", "auto")))
        assert dispatch.requested() == "auto"
        return order

    order = asyncio.run(main())
    assert len(order) == 9
    assert all(asked == seen for asked, seen in order)
    assert [asked for asked, _ in order[:3]] == ["reference", "cpu", "auto"]  # they did interleave


def test_a_copied_context_carries_the_request() -> None:
    with fastdl.use_backend("reference"):
        context = contextvars.copy_context()
    assert dispatch.requested() == "auto"
    assert context.run(dispatch.requested) == "reference"


@pytest.mark.parametrize("other", ["auto", "reference", "cpu"])
@pytest.mark.parametrize("in_thread", [False, True], ids=["same_thread", "other_thread"])
@pytest.mark.parametrize("forward", ["reference", "cpu"])
def test_backward_runs_on_the_backend_of_its_forward(forward: str, in_thread: bool, other: str) -> None:
    """Wherever backward is called: in a block that asks for another backend, and on another thread."""
    need_the_kernel()
    generator = torch.Generator().manual_seed(0)
    values, grad_output = (torch.randn(4, 30, 9, 9, generator=generator) for _ in range(2))

    def gradient(forward: str, backward: str) -> torch.Tensor:
        x = values.clone().requires_grad_()
        with fastdl.use_backend(forward):
            output = group_norm(x, 3, activation="silu")

        def run() -> None:
            with fastdl.use_backend(backward):
                output.backward(grad_output)

        if in_thread:
            thread = threading.Thread(target=run)
            thread.start()
            thread.join()
        else:
            run()
        assert x.grad is not None
        return x.grad

    # The two backends round differently, so the bits tell which of them it was.
    expected = {name: gradient(name, name) for name in ("reference", "cpu")}
    assert not torch.equal(expected["reference"], expected["cpu"])
    assert torch.equal(gradient(forward, other), expected[forward])


def test_the_registered_ops_remember_it_too() -> None:
    need_the_kernel()
    x = X.clone().requires_grad_()
    arguments = (x, None, None, None, 3, 1e-5, "silu", 0.0, False)
    output = torch.ops.fastdl.group_norm_forward(*arguments, "cpu")[0].sum()
    with fastdl.use_backend("reference"):
        assert "fastdl_cpu::group_norm_backward" in count_operators(output.backward)


@pytest.mark.parametrize("name", [name for name in BACKENDS_UNDER_TEST if name != "reference"])
def test_a_backend_asked_for_by_name_raises_where_it_cannot_serve(name: str) -> None:
    status = fastdl.backends()[name]
    with fastdl.use_backend(name):
        if not status.available:
            with pytest.raises(fastdl.BackendError, match=rf"group_norm: backend '{name}'"):
                group_norm(X, 3)
        elif name == "triton":
            with pytest.raises(fastdl.BackendError, match=r"serves .*torch\.float32.*; got input of torch\.float64"):
                group_norm(X.double(), 3)
        with pytest.raises(
            fastdl.BackendError, match=rf"backend '{name}' serves .* on .*; got input of torch\.float32 on meta"
        ):
            group_norm(X.to("meta"), 3)


def test_the_reason_of_a_missing_backend_is_in_the_error() -> None:
    missing = {name: status for name, status in fastdl.backends().items() if not status.available}
    if not missing:
        pytest.skip("every backend is available here")
    for name, status in missing.items():
        with fastdl.use_backend(name), pytest.raises(fastdl.BackendError) as raised:
            group_norm(X, 3)
        # A backend of another device says that first.
        assert status.reason in str(raised.value) or "serves" in str(raised.value)


def test_auto_falls_back_where_no_kernel_serves_the_device() -> None:
    assert group_norm(X.to("meta"), 3).device.type == "meta"
    choices = dispatch.auto_choices()
    assert set(choices) == set(OPERATORS)
    expected = "cpu" if fastdl.backends()["cpu"].available else "reference"
    assert set(choices["group_norm"].values()) == {expected} or torch.cuda.is_available()


def run_python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )


def test_the_environment_sets_the_start_value() -> None:
    code = (
        "import fastdl, fastdl.ops.dispatch as d; print(d.requested()); fastdl.set_backend('cpu'); print(d.requested())"
    )
    result = run_python(code, FASTDL_BACKEND="reference")
    assert result.stdout.split() == ["reference", "cpu"], result.stderr


def test_a_wrong_environment_is_told_by_name() -> None:
    result = run_python("import fastdl", FASTDL_BACKEND="fast")
    assert result.returncode != 0
    assert "FASTDL_BACKEND must be one of auto, reference, cpu, triton, cuda; got 'fast'" in result.stderr


def test_without_the_library_auto_serves_every_call_and_cpu_says_why(tmp_path: object) -> None:
    """One warning; the reference computes; asking for the kernel by name is an error with the reason in it."""
    code = """
import warnings, torch
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    import fastdl
    x = torch.randn(2, 4, 3, 3)
    for _ in range(3):
        assert torch.allclose(fastdl.ops.group_norm(x, 2), torch.nn.functional.group_norm(x, 2), atol=1e-5)
assert len([w for w in caught if "fastdl" in str(w.message)]) == 1, [str(w.message) for w in caught]
status = fastdl.backends()["cpu"]
assert not status.available and "FASTDL_BUILD" in status.reason, status
pool = fastdl.cpu_pool()
assert not pool.enabled and pool.reason == status.reason, pool
try:
    with fastdl.use_backend("cpu"):
        fastdl.ops.group_norm(x, 2)
except fastdl.BackendError as error:
    assert status.reason in str(error)
    print("refused")
"""
    result = run_python(code, FASTDL_BUILD="never", FASTDL_CACHE=str(tmp_path), TMPDIR=str(tmp_path))
    assert result.stdout.split() == ["refused"], result.stderr


def test_importing_the_package_is_light() -> None:
    """It loads neither the native library nor torch's compiler (a second by itself), nor any optional package."""
    code = """
import sys, torch, fastdl
heavy = ["torch._dynamo", "lightning", "matplotlib", "sklearn", "pandas", "pyarrow", "tyro", "triton", "torchvision"]
print([name for name in heavy if name in sys.modules])
print(hasattr(torch.ops.fastdl_cpu, "group_norm_forward"))
"""
    result = run_python(code)
    assert result.stdout.splitlines() == ["[]", "False"], result.stdout + result.stderr


def test_on_a_gpu_auto_keeps_the_vendors_convolutions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Until a measurement favours ours; asked for by name ours serve."""
    monkeypatch.setattr(dispatch, "status", lambda name: dispatch.BackendStatus(name != "cuda"))
    monkeypatch.setattr(dispatch.measured, "measured_backends", lambda op, dtype: frozenset())
    try:
        dispatch.choose.cache_clear()
        assert dispatch.choose("norm_act_conv", "auto", "cuda", torch.float32) == dispatch.VENDOR
        assert dispatch.choose("batch_norm", "auto", "cuda", torch.float32) == "triton"
        assert dispatch.choose("norm_act_conv", "triton", "cuda", torch.float32) == "triton"
        assert dispatch.choose("norm_act_conv", "auto", "cpu", torch.float32) == "cpu"
        monkeypatch.setattr(dispatch.measured, "measured_backends", lambda op, dtype: frozenset({"triton"}))
        dispatch.choose.cache_clear()
        assert dispatch.choose("norm_act_conv", "auto", "cuda", torch.float32) == dispatch.BY_MEASUREMENT
    finally:
        dispatch.choose.cache_clear()
