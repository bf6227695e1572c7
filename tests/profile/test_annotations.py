"""Named ranges: around which calls, under which name, with which values; and nothing where nobody looks on."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

import fastdl
from fastdl.ops import OPERATORS, annotation, batch_norm, dispatch, group_norm, layer_norm
from fastdl.ops.dispatch import Implementation
from fastdl.profile import annotated
from fastdl.profile.annotations import ANNOTATOR, describe
from fastdl.profile.arguments import take_apart
from fastdl.profile.subjects import OPS, OpSettings, op_subject
from tests.profile.watching import calls_of
from tests.support.backends import BACKENDS_UNDER_TEST

SHAPES = {"attention": (2, 2, 5, 8), "layer_norm": (3, 4, 8), "rms_norm": (3, 4, 8), "dropout": (3, 4, 8)}
IMAGE = (2, 16, 4, 4)
FIRST = {"attention": "query"}
# conv_norm_act is a convolution and a norm.
OPERATOR_OF = {"conv_norm_act": "batch_norm"}


def settings(op: str, **more: Any) -> OpSettings:
    return OpSettings(shape=SHAPES.get(op, IMAGE), num_groups=4 if op == "group_norm" else 32, **more)


@contextmanager
def on(backend: str) -> Iterator[None]:
    BACKENDS_UNDER_TEST[backend].device()
    with fastdl.use_backend(backend):
        yield


def ranges_of(function: Callable[[], object]) -> list[Any]:
    """The ranges of ours that torch's profiler sees, in order of their beginning."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], record_shapes=True) as profiler:
        function()
    events = profiler.events()
    assert events is not None
    return [
        e for e in sorted(events, key=lambda e: e.time_range.start) if e.name.startswith("fastdl::") and "[" in e.name
    ]


def by_name(text: str) -> dict[str, str]:
    """``input 2x3, weight 3``, as a range tells it."""
    return dict(part.split(" ") for part in text.split(", "))


@pytest.mark.parametrize("op", OPS)
def test_forward_and_backward_of_every_op_have_a_range(op: str) -> None:
    with on("cpu"):
        step = op_subject(op, settings(op)).step
        step()
        with annotated():
            found = ranges_of(step)
    name = OPERATOR_OF.get(op, op)
    assert [event.name for event in found] == [f"fastdl::{name}_forward[cpu]", f"fastdl::{name}_backward[cpu]"]
    for event in found:
        assert event.kwinputs["backend"] == "cpu"
        shapes, dtypes = by_name(event.kwinputs["shapes"]), by_name(event.kwinputs["dtypes"])
        assert set(dtypes) == set(shapes)
        first = FIRST.get(op, "input")
        if op == "dropout" and "backward" in event.name:
            assert list(shapes) == ["seed"]  # it keeps nothing else
            continue
        assert shapes[first] == "x".join(map(str, SHAPES.get(op, IMAGE)))
        assert dtypes[first] == "float32"
        assert event.kwinputs["least_bytes"] > 2 * 4 * torch.Size(SHAPES.get(op, IMAGE)).numel() - 1


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_inference_has_a_range_of_its_own(op: str, backend: str) -> None:
    with on(backend):
        step = op_subject(op, settings(op, backward=False)).step
        with annotated():
            (event,) = ranges_of(step)
    assert event.name == f"fastdl::{OPERATOR_OF.get(op, op)}_forward[{backend}]"


def test_every_operator_is_among_them() -> None:
    assert {OPERATOR_OF.get(op, op) for op in OPS} == set(OPERATORS)


def test_half_precision_and_channels_last_are_told() -> None:
    with on("cpu"):
        step = op_subject("group_norm", settings("group_norm", dtype="bfloat16", layout="channels_last")).step
        with annotated():
            forward, _ = ranges_of(step)
    assert by_name(forward.kwinputs["dtypes"]) == {"input": "bfloat16", "weight": "bfloat16", "bias": "bfloat16"}
    assert forward.input_shapes[0] == list(IMAGE)  # as torch's own operators tell them


def test_nothing_is_recorded_while_nobody_looks_on() -> None:
    x = torch.randn(IMAGE, requires_grad=True)
    assert annotation.annotate is None
    assert ranges_of(lambda: group_norm(x, 4).sum().backward()) == []
    with annotated():
        assert annotation.annotate is ANNOTATOR
    assert annotation.annotate is None
    assert ranges_of(lambda: group_norm(x, 4).sum().backward()) == []


def test_a_backward_is_seen_though_its_forward_was_not() -> None:
    """And the other way round."""
    x = torch.randn(IMAGE, requires_grad=True)
    with on("cpu"):
        output = group_norm(x, 4)
        (backward,) = calls_of(lambda: output.sum().backward())
        assert backward.name == "fastdl::group_norm_backward[cpu]"
        (forward,) = calls_of(lambda: held.append(group_norm(x, 4)) if (held := []) is not None else None)
        assert forward.direction == "forward"


def test_the_results_are_the_same() -> None:
    x = torch.randn(IMAGE, requires_grad=True)
    for backend in ("reference", "cpu"):
        with on(backend):
            plain = torch.autograd.grad(group_norm(x, 4, activation="silu").square().sum(), x)[0]
            with annotated():
                watched = torch.autograd.grad(group_norm(x, 4, activation="silu").square().sum(), x)[0]
        assert torch.equal(plain, watched)


def test_blocks_nest() -> None:
    x = torch.randn(IMAGE)
    with annotated():
        with annotated():
            pass
        assert len(ranges_of(lambda: group_norm(x, 4))) == 1
    assert annotation.annotate is None


def test_an_error_leaves_the_range_and_the_block() -> None:
    x = torch.randn(2, 3, requires_grad=True)

    def fails() -> None:
        with annotated():
            layer_norm(x, 3).sum().backward()
            raise KeyError("of the user")

    with pytest.raises(KeyError, match="of the user"):
        fails()
    assert annotation.annotate is None


def test_kernels_that_fail_end_their_range() -> None:
    def broken(*_: Any) -> None:
        raise RuntimeError("no kernel")

    kernels = Implementation(broken, broken, "cpu")
    operator = OPERATORS["group_norm"]

    def call() -> None:
        announced = annotation.announced(operator, "forward", kernels)
        with pytest.raises(RuntimeError, match="no kernel"):
            announced(torch.randn(IMAGE), None, None, None, 4, 1e-5, "identity", 0.0, False)
        torch.ones(3).neg()

    with annotated():
        (event,) = ranges_of(call)
    assert event.cpu_children == []


def test_create_graph_runs_the_reference_and_says_so() -> None:
    x = torch.randn(2, 4, 3, requires_grad=True)
    with on("cpu"):
        calls = calls_of(lambda: torch.autograd.grad(group_norm(x, 2).square().sum(), x, create_graph=True))
    names = [call.name for call in calls]
    assert names == ["fastdl::group_norm_forward[cpu]", "fastdl::group_norm_backward[reference]"]
    assert calls[1].cost is not None


def test_transforms_are_seen() -> None:
    x = torch.randn(2, 4, 3)
    with on("cpu"):
        calls = calls_of(lambda: torch.func.grad(lambda x: group_norm(x, 2).square().sum())(x))
    assert [call.name for call in calls] == [
        "fastdl::group_norm_forward[cpu]",
        "fastdl::group_norm_backward[reference]",
    ]
    assert calls[0].shapes == {"input": (2, 4, 3)}


def test_registered_ops_announce_the_kernel_behind_them() -> None:
    """What is traced names itself; in it lies the kernel that served it."""
    x = torch.randn(2, 4, 3, requires_grad=True)
    operator = OPERATORS["group_norm"]
    for backend in ("cpu", "reference"):
        BACKENDS_UNDER_TEST[backend].device()
        calls = calls_of(
            lambda: operator.forward_op(x, None, None, None, 2, 1e-5, "silu", 0.0, False, backend)[0].sum().backward()  # noqa: B023
        )
        assert [call.name for call in calls] == [
            f"fastdl::group_norm_forward[{backend}]",
            f"fastdl::group_norm_backward[{backend}]",
        ]


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_a_call_of_fake_tensors_runs_nothing_and_has_no_range(backend: str) -> None:
    def call() -> None:
        with FakeTensorMode() as mode:
            group_norm(mode.from_tensor(torch.randn(IMAGE)), 4)

    with on(backend):
        assert calls_of(call) == []


def test_a_graph_that_is_being_made_holds_no_range() -> None:
    def step(x: Tensor) -> Tensor:
        return group_norm(x, 4)

    with on("reference"):
        plain = make_fx(step)(torch.randn(IMAGE))
        with annotated():
            watched = make_fx(step)(torch.randn(IMAGE))
    assert [str(node.target) for node in watched.graph.nodes] == [str(node.target) for node in plain.graph.nodes]


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_compiled_code_stays_one_graph(backend: str) -> None:
    """And shows the registered ops, which the profiler names by itself, with the kernels' ranges in them."""
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    x = torch.randn(2, 4, 3, requires_grad=True)

    def step(x: Tensor) -> Tensor:
        return batch_norm(group_norm(x, 2, activation="silu"), None, None, training=True)

    with on(backend):
        compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
        plain = torch.autograd.grad(step(x).square().sum(), x)[0]
        with annotated():
            found = [torch.autograd.grad(compiled(x).square().sum(), x)[0]]
            names = [event.name for event in ranges_of(lambda: compiled(x).square().sum().backward())]
        found.append(torch.autograd.grad(compiled(x).square().sum(), x)[0])  # not compiled again, and not watched
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
    for gradient in found:
        torch.testing.assert_close(gradient, plain)
    expected = ["group_norm_forward", "batch_norm_forward", "batch_norm_backward", "group_norm_backward"]
    assert names == ([] if backend == "reference" else [f"fastdl::{name}[cpu]" for name in expected])
    torch._dynamo.reset()


def test_threads_announce_their_own_calls() -> None:
    """Each call is announced once, whoever makes it; ranges do not mix."""
    tensors = [torch.randn(2, 4, 3 + i, requires_grad=True) for i in range(4)]

    def work(x: Tensor) -> None:
        for _ in range(20):
            group_norm(x, 2).sum().backward()

    def all_at_once() -> None:
        threads = [threading.Thread(target=work, args=(x,)) for x in tensors]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    calls = calls_of(all_at_once)
    for x in tensors:
        of_x = [call for call in calls if call.shapes["input"] == tuple(x.shape)]
        assert [sum(call.direction == d for call in of_x) for d in ("forward", "backward")] == [20, 20]


def test_a_choice_by_measurement_is_told_as_what_serves_the_call() -> None:
    quick, other = Implementation(abs, abs, "triton"), Implementation(abs, abs, "cuda")
    by_size = Implementation(abs, abs, dispatch.BY_MEASUREMENT, None, lambda x: quick if x.shape[0] < 4 else other)
    operator = OPERATORS["group_norm"]
    for samples, backend in ((2, "triton"), (8, "cuda")):
        x = torch.randn(samples, 4, 3)
        statistics = torch.zeros(2, samples, 2, dtype=torch.float64)
        forward = (x, None, None, None, 2, 1e-5, "silu", 0.0, False)
        backward = (x, x, None, None, None, statistics, 2, 1e-5, "silu", 0.0, False, [True] * 4)
        for direction, arguments in (("forward", forward), ("backward", backward)):
            call = describe("group_norm", take_apart(operator, direction, arguments), by_size)
            assert call.name == f"fastdl::group_norm_{direction}[{backend}]"


class FakeRange:
    """`torch.cuda.nvtx.range`."""

    log: ClassVar[list[str]] = []

    def __init__(self, name: str) -> None:
        self.name = name

    def __enter__(self) -> None:
        self.log.append(f"push {self.name}")

    def __exit__(self, *error: object) -> None:
        self.log.append(f"pop {self.name}")


def test_nvtx_ranges_are_pushed_and_popped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda.nvtx, "range", FakeRange)
    monkeypatch.setattr(FakeRange, "log", [])
    x = torch.randn(2, 4, 3)
    with fastdl.use_backend("reference"):
        with annotated(nvtx=True):
            group_norm(x, 2)
        with annotated():
            group_norm(x, 2)
    name = "fastdl::group_norm_forward[reference]"
    assert FakeRange.log == [f"push {name}", f"pop {name}"]


def test_nvtx_needs_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with (
        pytest.raises(ValueError, match="nvtx must be False where torch sees no CUDA GPU; got True"),
        annotated(nvtx=True),
    ):
        pass
    assert annotation.annotate is None
