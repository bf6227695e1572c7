"""The registered ops as torch sees them: opcheck, schemas, fake and meta tensors, and tracing by make_fx."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

import fastdl
from fastdl.ops import OPERATORS, batch_norm, conv_norm_act, group_norm
from fastdl.ops.dispatch import SELF_ADJOINT
from tests.support.backends import BACKENDS_UNDER_TEST, short
from tests.support.layouts import LAYOUTS

SHAPE = (2, 6, 3, 5)
CHECKS = ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")


def forward_arguments(
    op: str, backend: str, layout: str, dtype: torch.dtype, first: bool, needs_grad: bool
) -> tuple[Any, ...]:
    """``first``: whether the activation comes before the norm."""
    device = BACKENDS_UNDER_TEST[backend].device()

    def tensor(shape: tuple[int, ...], kind: str = "contiguous") -> Tensor:
        return LAYOUTS[kind](shape, torch.randn).to(device, dtype).requires_grad_(needs_grad)

    x, residual = tensor(SHAPE, layout), tensor(SHAPE, layout)
    weight, bias = tensor((6,)), tensor((6,))
    if op == "group_norm":
        return (x, weight, bias, residual, 3, 1e-5, "silu", 0.0, first, backend)
    if op == "batch_norm":
        return (x, weight, bias, residual, None, None, 1e-5, "silu", 0.0, first, backend)
    mean, variance = torch.zeros(6, dtype=dtype, device=device), torch.ones(6, dtype=dtype, device=device)
    return (x, weight, bias, None, mean, variance, 1e-5, "gelu", 0.0, first, backend)


@pytest.mark.parametrize("backend", BACKENDS_UNDER_TEST)
@pytest.mark.parametrize("op", ["group_norm", "batch_norm", "batch_norm_evaluation"])
@pytest.mark.parametrize(
    ("layout", "dtype", "first", "needs_grad"),
    [
        ("contiguous", torch.float32, False, True),
        ("channels_last", torch.float32, True, True),
        ("sliced_space", torch.float32, False, False),
        ("sliced_channels_last", torch.bfloat16, False, False),
        ("expanded_batch", torch.float32, False, False),
    ],
    ids=lambda value: short(value) if isinstance(value, torch.dtype) else str(value),
)
def test_forward_passes_opcheck(
    op: str, layout: str, dtype: torch.dtype, first: bool, needs_grad: bool, backend: str
) -> None:
    arguments = forward_arguments(op, backend, layout, dtype, first, needs_grad)
    torch.library.opcheck(OPERATORS[op.removesuffix("_evaluation")].forward_op, arguments, test_utils=CHECKS)


@pytest.mark.parametrize("backend", BACKENDS_UNDER_TEST)
@pytest.mark.parametrize("op", ["group_norm", "batch_norm"])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "sliced_space"])
@pytest.mark.parametrize("needs", [[True] * 4, [True, False, False, False], [False, True, True, False]], ids=str)
def test_backward_passes_opcheck(op: str, needs: list[bool], layout: str, backend: str) -> None:
    arguments = forward_arguments(op, backend, layout, torch.float32, False, False)
    operator = OPERATORS[op]
    output, statistics = operator.forward_op(*arguments)
    tensors, statics = arguments[: operator.count], arguments[operator.count : -1]
    grad_output = torch.randn_like(output)
    torch.library.opcheck(
        operator.backward_op, (grad_output, *tensors, statistics, *statics, needs, backend), test_utils=CHECKS
    )


@pytest.mark.parametrize("op", ["group_norm", "batch_norm"])
def test_a_gradient_that_is_passed_on_is_no_alias(op: str) -> None:
    """Of a residual under the identity: the output's own gradient."""
    arguments = list(forward_arguments(op, "reference", "contiguous", torch.float32, False, False))
    arguments[arguments.index("silu")] = "identity"
    operator = OPERATORS[op]
    output, statistics = operator.forward_op(*arguments)
    tensors, statics = arguments[: operator.count], arguments[operator.count : -1]
    given = (torch.randn_like(output), *tensors, statistics, *statics, [True] * 4, "reference")
    torch.library.opcheck(operator.backward_op, given, test_utils=CHECKS)
    assert torch.equal(operator.backward_op(*given)[3], given[0])


@pytest.mark.parametrize("op", OPERATORS)
def test_the_ops_are_registered_under_their_names(op: str) -> None:
    assert getattr(torch.ops.fastdl, f"{op}_forward").default is OPERATORS[op].forward_op
    if op in SELF_ADJOINT:
        assert not hasattr(torch.ops.fastdl, f"{op}_backward")
    else:
        assert getattr(torch.ops.fastdl, f"{op}_backward").default is OPERATORS[op].backward_op


CALLS = {
    "group_norm": lambda x: group_norm(x, 3, activation="silu"),
    "batch_norm": lambda x: batch_norm(x, None, None, training=True, activation="relu"),
    "conv_norm_act": lambda x: conv_norm_act(x, x.new_ones(4, 6, 1, 1), norm="group", num_groups=2),
}


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "sliced_channels", "sliced_channels_last"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=short)
@pytest.mark.parametrize("kind", ["fake", "meta"])
def test_shapes_without_values(kind: str, dtype: torch.dtype, layout: str, call: str) -> None:
    """Fake and meta tensors give the shape, dtype and strides of the real call."""
    x = LAYOUTS[layout](SHAPE, torch.randn).to(dtype)
    expected = CALLS[call](x)
    if kind == "fake":
        with FakeTensorMode() as mode:
            output = CALLS[call](mode.from_tensor(x))
    else:
        output = CALLS[call](torch.empty_strided(x.shape, x.stride(), dtype=dtype, device="meta"))
    assert (output.shape, output.dtype) == (expected.shape, expected.dtype)
    if kind == "fake":
        assert output.stride() == expected.stride()


@pytest.mark.parametrize("call", CALLS)
def test_meta_tensors_differentiate(call: str) -> None:
    x = torch.empty(SHAPE, device="meta", requires_grad=True)
    CALLS[call](x).sum().backward()
    assert x.grad is not None
    assert (x.grad.device.type, x.grad.shape) == ("meta", x.shape)


@pytest.mark.parametrize("backend", BACKENDS_UNDER_TEST)
@pytest.mark.parametrize("tracing_mode", ["real", "fake", "symbolic"])
@pytest.mark.parametrize("call", ["group_norm", "batch_norm"])
def test_make_fx_traces_forward_and_backward(call: str, tracing_mode: str, backend: str) -> None:
    device = BACKENDS_UNDER_TEST[backend].device()

    def step(x: Tensor, grad_output: Tensor) -> tuple[Tensor, Tensor]:
        x = x.detach().requires_grad_()
        output = CALLS[call](x)
        return output.detach(), torch.autograd.grad(output, x, grad_output)[0]

    x, grad_output = torch.randn(2, *SHAPE, device=device)
    with fastdl.use_backend(backend):
        graph = make_fx(step, tracing_mode=tracing_mode)(x, grad_output)
        if backend != "reference":
            names = {str(node.target) for node in graph.graph.nodes}
            assert f"fastdl.{call}_forward.default" in names
            assert f"fastdl.{call}_backward.default" in names
        other, other_grad = torch.randn(2, *SHAPE, device=device)
        for traced, eager in zip(graph(other, other_grad), step(other, other_grad), strict=True):
            torch.testing.assert_close(traced, eager)
