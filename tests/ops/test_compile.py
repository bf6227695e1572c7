"""torch.compile and torch.export: no graph break, static and dynamic shapes, equal to eager, guarded by backend."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch._dynamo.backends.registry import lookup_backend

import fastdl
from fastdl import nn
from fastdl.ops import batch_norm, conv_norm_act, group_norm
from tests.support.backends import BACKENDS_UNDER_TEST

# Deprecated things that torch 2.13's compiler itself uses.
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")

Call = Callable[[Tensor, Tensor, Tensor], Tensor]
CALLS: dict[str, Call] = {
    "group_norm": lambda x, w, b: group_norm(x, 4, w, b, activation="silu"),
    "batch_norm": lambda x, w, b: batch_norm(x, None, None, w, b, True, activation="relu"),
    "batch_norm_evaluation": lambda x, w, b: batch_norm(x, w.detach(), b.detach().square(), w, b, activation="gelu"),
    "batch_norm_residual": lambda x, w, b: batch_norm(
        x, None, None, w, b, True, activation="silu", order="act_norm", residual=x
    ),
    "conv_norm_act": lambda x, w, b: conv_norm_act(
        x, torch.diag(w).view(8, 8, 1, 1), norm_weight=w, norm_bias=b, norm="layer"
    ),
}
SIZES = ((2, 8, 5, 7), (3, 8, 6, 4), (4, 8, 9, 9))


@pytest.fixture(autouse=True)
def fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def tensors(shape: tuple[int, ...], channels_last: bool = False) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(len(shape) + shape[-1])
    x = torch.randn(shape, generator=generator)
    if channels_last:
        x = x.contiguous(memory_format=torch.channels_last)
    weight, bias = (torch.randn(shape[1], generator=generator) for _ in range(2))
    return x.requires_grad_(), weight.requires_grad_(), bias.requires_grad_()


def step(call: Call, arguments: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    output = call(*arguments)
    return output, *torch.autograd.grad(output.sin().sum(), arguments)


class Recorder:
    """A compiler backend that keeps, for each graph it is given, whether the graph holds one of our registered ops."""

    def __init__(self, compiler: str = "eager") -> None:
        self.graphs: list[bool] = []
        self.compiler = lookup_backend(compiler)

    def __call__(self, graph: torch.fx.GraphModule, inputs: list[Any]) -> Callable[..., Any]:
        self.graphs.append(any("fastdl" in str(node.target) for node in graph.graph.nodes))
        return self.compiler(graph, inputs)


@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
@pytest.mark.parametrize(
    ("call", "backend"),
    # The reference is torch's own ops, slow to trace: one of the calls shows that it does.
    [
        (call, backend)
        for call in CALLS
        for backend in BACKENDS_UNDER_TEST
        if backend != "reference" or call == "group_norm"
    ],
)
def test_compiled_equals_eager_without_a_graph_break(call: str, dynamic: bool, backend: str) -> None:
    if BACKENDS_UNDER_TEST[backend].device().type != "cpu":
        pytest.skip("this test's tensors are on the CPU")
    recorder = Recorder("aot_eager")
    compiled = torch.compile(CALLS[call], backend=recorder, fullgraph=True, dynamic=dynamic)
    compiled_for = []
    with fastdl.use_backend(backend):
        for shape in SIZES if dynamic else SIZES[:1]:
            for channels_last in (False, True):
                arguments = tensors(shape, channels_last)
                for ours, expected in zip(step(compiled, arguments), step(CALLS[call], arguments), strict=True):
                    torch.testing.assert_close(ours, expected)
                    if call != "conv_norm_act":
                        assert ours.stride() == expected.stride() or backend == "reference"
            compiled_for.append(len(recorder.graphs))
    assert recorder.graphs == [backend != "reference"] * len(recorder.graphs)
    assert set(compiled_for) == {compiled_for[0]}, "another size brought a compilation"


@pytest.mark.parametrize("call", ["group_norm", "batch_norm"])
def test_inductor(call: str) -> None:
    compiled = torch.compile(CALLS[call], fullgraph=True)
    arguments = tensors(SIZES[0])
    for ours, expected in zip(step(compiled, arguments), step(CALLS[call], arguments), strict=True):
        torch.testing.assert_close(ours, expected)


@pytest.mark.slow
def test_inductor_fuses_around_the_op_with_dynamic_shapes() -> None:
    def block(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
        return group_norm(x * 2 + 1, 4, w, b, activation="gelu").exp().mean((2, 3))

    compiled = torch.compile(block, fullgraph=True, dynamic=True)
    for shape in SIZES:
        arguments = tensors(shape)
        for ours, expected in zip(step(compiled, arguments), step(block, arguments), strict=True):
            # exp is the compiler's own, and the norm's backward subtracts values as large as the largest gradient.
            torch.testing.assert_close(ours, expected, rtol=1e-5, atol=2e-6 * float(expected.detach().abs().max()))


def test_running_statistics_are_updated_in_compiled_code() -> None:
    eager, compiled_module = nn.BatchNorm2d(8, activation="relu"), nn.BatchNorm2d(8, activation="relu")
    compiled = torch.compile(compiled_module, backend="aot_eager", fullgraph=True)
    for _ in range(3):
        x = torch.randn(4, 8, 5, 5)
        torch.testing.assert_close(compiled(x), eager(x))
    for name, buffer in eager.named_buffers():
        torch.testing.assert_close(compiled_module.get_buffer(name), buffer)
    eager.eval()
    compiled_module.eval()
    torch.testing.assert_close(compiled(x), eager(x))


def network(momentum: float | None) -> torch.nn.Sequential:
    return torch.nn.Sequential(
        nn.ConvNormAct2d(3, 8, 3, padding=1, momentum=momentum),
        nn.ConvNormAct2d(8, 8, 1, norm="group", num_groups=2, activation="silu", order="conv_act_norm"),
        nn.GroupNorm(2, 8, activation="gelu"),
    )


def test_modules_compile_in_both_modes() -> None:
    model = network(momentum=0.1)
    twin = copy.deepcopy(model)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    for training in (True, False):
        model.train(training)
        twin.train(training)
        x = torch.randn(2, 3, 6, 6)
        ours, expected = compiled(x), twin(x)
        torch.testing.assert_close(ours, expected)
        ours.square().mean().backward()
        expected.square().mean().backward()
    for (name, parameter), other in zip(model.named_parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(parameter.grad, other.grad, msg=name)


def test_the_cumulative_momentum_compiles_as_torchs_does() -> None:
    """momentum=None reads a counter tensor, which breaks torch.nn.BatchNorm2d's graph too; the results are right."""
    ours, theirs = nn.BatchNorm2d(3, momentum=None), torch.nn.BatchNorm2d(3, momentum=None)
    compiled = torch.compile(ours, backend="aot_eager")
    for _ in range(3):
        x = torch.randn(4, 3, 5, 5)
        torch.testing.assert_close(compiled(x), theirs(x))
    for name, buffer in theirs.named_buffers():
        torch.testing.assert_close(ours.get_buffer(name), buffer)


def test_changing_the_backend_recompiles() -> None:
    BACKENDS_UNDER_TEST["cpu"].device()
    recorder = Recorder()
    compiled = torch.compile(lambda x: group_norm(x, 2, activation="silu"), backend=recorder, fullgraph=True)
    x = torch.randn(2, 4, 3, 3)
    expected = F.silu(F.group_norm(x, 2))
    with fastdl.use_backend("cpu"):
        torch.testing.assert_close(compiled(x), expected)
    with fastdl.use_backend("reference"):
        torch.testing.assert_close(compiled(x), expected)
    assert recorder.graphs == [True, False]
    with fastdl.use_backend("cpu"):  # both graphs are kept
        torch.testing.assert_close(compiled(x), expected)
    with fastdl.use_backend("reference"):
        torch.testing.assert_close(compiled(x), expected)
    assert recorder.graphs == [True, False]
    fastdl.set_backend("reference")
    try:
        compiled(x)
    finally:
        fastdl.set_backend("auto")
    assert recorder.graphs == [True, False]


def test_another_thread_gets_the_graph_of_its_own_backend() -> None:
    BACKENDS_UNDER_TEST["cpu"].device()
    recorder = Recorder()
    compiled = torch.compile(lambda x: group_norm(x, 2), backend=recorder, fullgraph=True)
    x = torch.randn(2, 4, 3, 3)
    results: list[Tensor] = []

    def in_thread() -> None:
        with fastdl.use_backend("reference"):
            results.append(compiled(x))

    with fastdl.use_backend("cpu"):
        results.append(compiled(x))
        thread = threading.Thread(target=in_thread)
        thread.start()
        thread.join()
        results.append(compiled(x))
    assert recorder.graphs == [True, False]
    assert torch.equal(results[0], results[2])
    torch.testing.assert_close(results[0], results[1])


def test_a_backend_that_cannot_serve_raises_in_compiled_code_too() -> None:
    if fastdl.backends()["cuda"].available:
        pytest.skip("the cuda backend is available")
    compiled = torch.compile(lambda x: group_norm(x, 2), backend="eager")
    with fastdl.use_backend("cuda"), pytest.raises(Exception, match="cuda"):
        compiled(torch.randn(2, 4, 3, 3))


@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
def test_export(dynamic: bool) -> None:
    model = torch.nn.Sequential(
        nn.ConvNormAct2d(3, 8, 3), nn.GroupNorm(2, 8, activation="silu"), nn.BatchNorm2d(8)
    ).eval()
    x = torch.randn(2, 3, 8, 8)
    shapes = ({0: torch.export.Dim("batch", min=2, max=64)},) if dynamic else None
    program = torch.export.export(model, (x,), dynamic_shapes=shapes)
    for batch in (2, 5) if dynamic else (2,):
        x = torch.randn(batch, 3, 8, 8)
        torch.testing.assert_close(program.module()(x), model(x))


def test_export_on_the_kernels_keeps_one_op_a_norm() -> None:
    BACKENDS_UNDER_TEST["cpu"].device()
    model = torch.nn.Sequential(nn.GroupNorm(2, 8, activation="silu"), nn.BatchNorm2d(8, activation="relu")).eval()
    with fastdl.use_backend("cpu"):
        program = torch.export.export(model, (torch.randn(2, 8, 4, 4),))
    names = [str(node.target) for node in program.graph.nodes if "fastdl" in str(node.target)]
    assert names == ["fastdl.group_norm_forward.default", "fastdl.batch_norm_forward.default"]
