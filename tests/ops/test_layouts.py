"""The memory layout of outputs and gradients, and that no copy is made behind the caller's back."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import fastdl
from fastdl.ops import batch_norm, conv_norm_act, group_norm
from tests.support.backends import BACKENDS_UNDER_TEST
from tests.support.layouts import LAYOUTS
from tests.support.measure import copies, count_operators

IMAGE = (2, 8, 6, 10)
OPS: dict[str, Callable[[Tensor], Tensor]] = {
    "group_norm": lambda x: group_norm(x, 4, torch.ones(x.shape[1]), torch.zeros(x.shape[1]), activation="silu"),
    "batch_norm": lambda x: batch_norm(
        x, None, None, torch.ones(x.shape[1]), torch.zeros(x.shape[1]), True, activation="relu"
    ),
    "batch_norm_evaluation": lambda x: batch_norm(
        x, torch.zeros(x.shape[1]), torch.ones(x.shape[1]), activation="relu"
    ),
    "conv_norm_act": lambda x: conv_norm_act(
        x, torch.ones(4, x.shape[1], *[1] * (x.ndim - 2)), norm="group", num_groups=2
    ),
}


def run(
    op: str, backend: str, layout: str, shape: tuple[int, ...], grad_layout: str = "contiguous"
) -> tuple[Tensor, Tensor]:
    device = BACKENDS_UNDER_TEST[backend].device()
    if device.type != "cpu":
        pytest.skip("the ops of this table make their parameters on the CPU")
    x = LAYOUTS[layout](shape, torch.randn).requires_grad_()
    with fastdl.use_backend(backend):
        output = OPS[op](x)
    (gradient,) = torch.autograd.grad(output, x, LAYOUTS[grad_layout](tuple(output.shape), torch.randn))
    return output.detach(), gradient


def chooses_layout_of_gradient(op: str, backend: str) -> bool:
    """The reference's gradients are autograd's, and conv_norm_act's input gradient is that of torch's convolution."""
    return backend != "reference" and op != "conv_norm_act"


def dense_strides(shape: torch.Size, channels_last: bool) -> tuple[int, ...]:
    order = (0, *range(2, len(shape)), 1) if channels_last else tuple(range(len(shape)))
    strides, stride = [0] * len(shape), 1
    for dimension in reversed(order):
        strides[dimension] = stride
        stride *= shape[dimension]
    return tuple(strides)


@pytest.mark.parametrize("backend", BACKENDS_UNDER_TEST)
@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("shape", [IMAGE, (2, 8, 15), (2, 4, 3, 4, 5)], ids=["image", "sequence", "volume"])
@pytest.mark.parametrize("grad_layout", ["contiguous", "channels_last", "expanded_everywhere"])
def test_channels_last_stays_channels_last(op: str, backend: str, shape: tuple[int, ...], grad_layout: str) -> None:
    if op == "conv_norm_act" and len(shape) != 4:
        pytest.skip("torch's own convolution gives channels_last on the CPU for images alone")
    output, gradient = run(op, backend, "channels_last", shape, grad_layout)
    assert output.stride() == dense_strides(output.shape, True)
    if chooses_layout_of_gradient(op, backend):
        assert gradient.stride() == dense_strides(gradient.shape, True)


@pytest.mark.parametrize("backend", BACKENDS_UNDER_TEST)
@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("shape", [IMAGE, (2, 8, 15), (2, 4, 3, 4, 5)], ids=["image", "sequence", "volume"])
@pytest.mark.parametrize("grad_layout", ["contiguous", "channels_last", "expanded_everywhere"])
def test_contiguous_stays_contiguous(op: str, backend: str, shape: tuple[int, ...], grad_layout: str) -> None:
    output, gradient = run(op, backend, "contiguous", shape, grad_layout)
    assert output.is_contiguous()
    if chooses_layout_of_gradient(op, backend):
        assert gradient.is_contiguous()


@pytest.mark.parametrize("backend", BACKENDS_UNDER_TEST)
@pytest.mark.parametrize("op", ["group_norm", "batch_norm", "batch_norm_evaluation"])
def test_a_slice_of_channels_last_gives_dense_channels_last(op: str, backend: str) -> None:
    output, _ = run(op, backend, "sliced_channels_last", IMAGE)
    assert output.stride() == dense_strides(output.shape, True)


@pytest.mark.parametrize("backend", BACKENDS_UNDER_TEST)
@pytest.mark.parametrize("op", ["group_norm", "batch_norm", "batch_norm_evaluation"])
@pytest.mark.parametrize(
    "layout", ["sliced_channels", "sliced_batch", "sliced_space", "every_other_channel", "expanded_batch"]
)
def test_a_view_gives_a_dense_contiguous_output(op: str, backend: str, layout: str) -> None:
    output, _ = run(op, backend, layout, IMAGE)
    assert output.is_contiguous()


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize(
    "layout",
    [
        "contiguous",
        "channels_last",
        "sliced_channels",
        "sliced_channels_last",
        "sliced_batch",
        "sliced_rows",
        "storage_offset",
    ],
)
def test_the_kernel_reads_where_the_tensor_lies(op: str, layout: str) -> None:
    """No copy is dispatched, in forward or backward."""
    if op == "conv_norm_act" and layout not in ("contiguous", "channels_last"):
        pytest.skip("torch's own convolution copies views")
    BACKENDS_UNDER_TEST["cpu"].device()
    x = LAYOUTS[layout]((2, 16, 12, 20), torch.randn).requires_grad_()
    with fastdl.use_backend("cpu"):
        output = OPS[op](x)
        grad_output = torch.ones_like(output)
        forward = count_operators(lambda: OPS[op](x))
        backward = count_operators(lambda: torch.autograd.grad(output, x, grad_output))
    assert forward
    assert backward
    assert copies(forward) == {}
    if op != "conv_norm_act":  # oneDNN's backward reorders for itself
        assert copies(backward) == {}


def test_a_view_that_no_kernel_can_read_is_copied() -> None:
    """The counter of the test above sees a copy where there has to be one."""
    BACKENDS_UNDER_TEST["cpu"].device()
    x = LAYOUTS["every_other_position"]((2, 16, 12, 20), torch.randn)
    with fastdl.use_backend("cpu"):
        assert sum(copies(count_operators(lambda: OPS["group_norm"](x))).values()) >= 1


@pytest.mark.parametrize("op", ["group_norm", "batch_norm", "batch_norm_evaluation"])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "sliced_channels", "sliced_channels_last"])
def test_forward_and_backward_take_one_large_block_each(op: str, layout: str) -> None:
    """Outputs of 1 MiB and more come from the pool, which counts them: nothing else is as large."""
    BACKENDS_UNDER_TEST["cpu"].device()
    x = LAYOUTS[layout]((2, 32, 80, 80), torch.randn).requires_grad_()

    def blocks() -> int:
        status = fastdl.cpu_pool("on")
        return status.hits + status.misses

    with fastdl.use_backend("cpu"):
        before = blocks()
        output = OPS[op](x)
        assert blocks() - before == 1
        torch.autograd.grad(output, x, torch.ones_like(output))
        assert blocks() - before == 2
